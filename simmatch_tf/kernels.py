"""Which of TensorFlow's kernels training takes on a CPU."""

import os


def fast() -> None:
    """Turns oneDNN's kernels on, unless the environment says otherwise.

    They are faster than TensorFlow's own on any x86 processor, a third of a
    step and more, and TensorFlow turns them on by itself on some only. It
    reads this when it is imported: call it before. Not for what serves: there
    the rounding of an image's figures would depend on its batch, and an empty
    batch would come out in the wrong shape.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
