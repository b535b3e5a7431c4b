"""What the terminal shows of a run: a progress bar, figures, warnings."""

import contextlib
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence

from simmatch_tf import terminal
from simmatch_tf.monitoring import diagnosis

_WIDTH = 80
# TensorBoard tag → its label and format; losses of other names follow.
_LOSSES = {
    "loss/total": ("loss", "{:.3f}"),
    "loss/s": ("L_s", "{:.3f}"),
    "loss/u": ("L_u", "{:.3f}"),
    "loss/in": ("L_in", "{:.3f}"),
}
_SHARES = {
    "pseudo_label/mask_rate": ("mask", "{:.0%}"),
    "pseudo_label/accuracy_all": ("right", "{:.0%}"),
}


class Progress:
    """Shows two live lines on a terminal, and plain lines elsewhere.

    --verbosity=-1 shows warnings only, --verbosity=-2 not even these.

    Attributes:
        done: Steps done.
    """

    def __init__(
        self, start: int, steps: int, *, bar: bool, loud: bool = True
    ) -> None:
        """Starts at a step.

        Args:
            start: Steps done before this session.
            steps: Length of the run.
            bar: Show live lines if standard error is a terminal.
            loud: False shows nothing at all.
        """
        self.done = start
        self._steps = steps
        # The rate is that of the steps and seconds since these two.
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
        """Keeps the time of compiling out of the rate and the time left.

        Args:
            count: Number of steps that the body takes.
            compiled: Whether they are compiled already.
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
        """Moves on to a step.

        Args:
            step: Steps done.
            values: TensorBoard tag → value, if the step was logged.
        """
        self._bar.update(step - self.done)
        self.done = step
        if values is None:
            return
        shown = [
            f"{name} {form.format(values[tag])}"
            for tag, (name, form) in _figures(values).items()
        ]
        if not self._bar.disable:
            parts = [*filter(None, [*shown, self._accuracy])]
            while len("  ".join(parts)) > self._room() and len(parts) > 1:
                del parts[0]  # the last figures matter most
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
        """Shows the result of an evaluation.

        Args:
            step: Steps done.
            name_of_set: "test" or "validation".
            accuracy: Network → "top1", a fraction.
            record: The network whose weights are the run's result.
        """
        figures = [f"{name} {a['top1']:.2%}" for name, a in accuracy.items()]
        self.say(f"step {step}: {name_of_set} top-1 {', '.join(figures)}")
        self._accuracy = f"{name_of_set} {accuracy[record]['top1']:.1%}"

    def _room(self) -> int:
        """Returns the width of a line; the terminal would wrap a longer one."""
        return min(_WIDTH, self._below.ncols or _WIDTH) - 1

    def say(self, text: str) -> None:
        """Prints a line above the live ones."""
        if self._loud and not self._bar.disable:
            text = _fill(text)
        if self._loud:
            self._bar.write(text, file=sys.stderr)

    def warn(self, findings: Sequence[diagnosis.Finding]) -> None:
        """Warns of problems: what is seen, why, and which flags to change."""
        for each in findings if self._warns else ():
            text = f"warning: {each.says} {each.why} {each.turn}"
            self._bar.write(_fill(text), file=sys.stderr)

    def close(self) -> None:
        """Ends the live lines."""
        self._below.close()
        self._bar.close()


def _figures(values: Mapping[str, float]) -> dict[str, tuple[str, str]]:
    """Returns the tags to show of those that have values."""
    own = {
        tag: (f"L_{tag.removeprefix('loss/')}", "{:.3f}")
        for tag in values
        if tag.startswith("loss/") and not tag.startswith("loss/weighted_")
    }
    figures = {**_LOSSES, **{t: own[t] for t in own if t not in _LOSSES}}
    figures |= _SHARES
    return {tag: figures[tag] for tag in figures if tag in values}


def _fill(text: str) -> str:
    """Breaks a line to fit a terminal; no word, and no path, is cut."""
    return textwrap.fill(
        text,
        _WIDTH - 1,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
