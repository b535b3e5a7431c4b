"""What a person sees while a run goes on."""

import contextlib
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence

from simmatch_tf import terminal
from simmatch_tf.monitoring import diagnosis

_WIDTH = 80
# Of the line below the bar: tag → what stands before its value, its form.
_SHOWN = {
    "loss/total": ("loss", "{:.3f}"),
    "loss/s": ("L_s", "{:.3f}"),
    "loss/u": ("L_u", "{:.3f}"),
    "loss/in": ("L_in", "{:.3f}"),
    "pseudo_label/mask_rate": ("mask", "{:.0%}"),
    "pseudo_label/accuracy_all": ("right", "{:.0%}"),
}


class Progress:
    """Two live lines on a terminal, plain lines elsewhere.

    Silent below --verbosity=0, but for warnings: these are below -1.

    Attributes:
        done: Step that is shown.
    """

    def __init__(
        self, start: int, steps: int, *, bar: bool, loud: bool = True
    ) -> None:
        """Starts at a step.

        Args:
            start: Steps done before.
            steps: Length of the run.
            bar: Show live lines if standard error is a terminal.
            loud: Say anything at all.
        """
        self.done = start
        self._steps = steps
        # Steps and seconds behind these two give the rate.
        self._first, self._began = start, time.monotonic()
        self._loud = loud and not terminal.quiet()
        self._warns = loud and terminal.warns()
        show = bar and self._loud
        self._bar = terminal.progress(
            steps,
            "step",
            done=start,
            shown=show,
            smoothing=0,  # the mean of all steps, as below
            bar_format=(
                "{percentage:3.0f}% {bar} {n_fmt}/{total_fmt} "
                "{rate_fmt}, {remaining} left"
            ),
        )
        self._below = terminal.progress(
            steps, "step", shown=show, bar_format="{desc}", position=1
        )
        self._accuracy = ""

    @contextlib.contextmanager
    def steps(self, count: int, *, compiled: bool) -> Iterator[None]:
        """Around steps: those that are compiled first tell no time left.

        Args:
            count: How many.
            compiled: They are compiled already.
        """
        if compiled:
            yield
            return
        if self.done == self._first:
            self.say("compiling the step")
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        self._began += seconds
        self._first += count
        if not self._bar.disable:
            self._bar.start_t += seconds
            self._bar.initial += count

    def advance(self, step: int, values: Mapping[str, float] | None) -> None:
        """Moves to a step; `values` where it was logged."""
        self._bar.update(step - self.done)
        self.done = step
        if values is None:
            return
        shown = [
            f"{name} {form.format(values[tag])}"
            for tag, (name, form) in _SHOWN.items()
            if tag in values
        ]
        if not self._bar.disable:
            parts = [*filter(None, [*shown, self._accuracy])]
            while len("  ".join(parts)) > self._room() and len(parts) > 1:
                del parts[0]  # what stands last is looked at most
            self._below.set_description_str("  ".join(parts))
        elif self._loud:
            speed = ""
            if step > self._first:
                rate = (step - self._first) / (time.monotonic() - self._began)
                left = (self._steps - step) / max(rate, 1e-9)
                speed = f" ({rate:.2f} steps/s, {left:.0f} s left)"
            self.say(f"step {step}/{self._steps}: {', '.join(shown)}{speed}")

    def evaluated(
        self,
        step: int,
        name_of_set: str,
        accuracy: Mapping[str, Mapping[str, float]],
        record: str,
    ) -> None:
        """Says what an evaluation found; `record`: whose is the result."""
        figures = [
            f"{name} {found['top1']:.2%}" for name, found in accuracy.items()
        ]
        self.say(f"step {step}: {name_of_set} top-1 {', '.join(figures)}")
        self._accuracy = f"{name_of_set} {accuracy[record]['top1']:.1%}"

    def _room(self) -> int:
        """Columns of a line: less than the terminal's, which would wrap it."""
        return min(_WIDTH, self._below.ncols or _WIDTH) - 1

    def say(self, text: str) -> None:
        """Prints a line above the live ones."""
        if self._loud and not self._bar.disable:
            text = _fill(text)
        if self._loud:
            self._bar.write(text, file=sys.stderr)

    def warn(self, findings: Sequence[diagnosis.Finding]) -> None:
        """Warns of patterns: what is seen, why, and what to turn."""
        for found in findings if self._warns else ():
            text = f"warning: {found.says} {found.why} {found.turn}"
            self._bar.write(_fill(text), file=sys.stderr)

    def close(self) -> None:
        """Ends the live lines."""
        self._below.close()
        self._bar.close()


def _fill(text: str) -> str:
    """A line as several that fit a terminal; no word, and no path, is cut."""
    return textwrap.fill(
        text,
        _WIDTH - 1,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
