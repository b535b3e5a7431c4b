"""Keeps freed memory in the process, so that a step does not fault it in."""

import ctypes
import ctypes.util
import os

# glibc's mallopt parameters (malloc.h).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_MANY_CORES = 8


def keep_memory() -> bool:
    """Tells the C library not to return memory between steps.

    A training step on the CPU allocates and frees the same large buffers again
    and again. By default each is mapped and unmapped, and the kernel clears
    its pages every time: up to a quarter of the step, by machine
    (tools/benchmarks/benchmark_step.py --noallocator). The process keeps its
    peak.

    Returns:
        Whether there was something to tell: False where the C library is not
        glibc.
    """
    try:
        mallopt = ctypes.CDLL(ctypes.util.find_library("c")).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    done = mallopt(_MMAP_MAX, 0)
    done &= mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    done &= mallopt(_TOP_PAD, 2**28)
    # One arena is one lock: too few where many threads allocate at once.
    if (os.cpu_count() or 1) < _MANY_CORES:
        done &= mallopt(_ARENA_MAX, 1)
    return bool(done)
