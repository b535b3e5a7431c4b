"""What the terminal shows of a run: a progress bar, figures, warnings."""

import contextlib
import dataclasses
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence

from simmatch_tf import config as config_lib
from simmatch_tf import terminal
from simmatch_tf.monitoring import diagnosis
from simmatch_tf.training import duration

_WIDTH = 80
# The end of the run is foretold once so many seconds of steps were timed, to a
# logged step; or these, as a GPU has perhaps only queued the steps until then.
_TIMED_SECONDS, _QUEUED_SECONDS = 2.0, 10.0
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
# What labels mean, where the run has them; said once.
_MEANINGS = {
    "loss/s": "L_s: loss of the labeled images",
    "loss/u": "L_u: loss of unlabeled images against their pseudo-labels",
    "loss/in": "L_in: loss against their similarities to labeled images",
    "loss/c": "L_c: loss of strong views against the graph of pseudo-labels",
    "loss/f": "L_f: fairness loss, negative; it keeps classes from falling out",
    "loss/kl": "L_kl: loss of strong views that are not mixed",
    "loss/e": "L_e: entropy of the predictions for unlabeled images",
    "loss/rotation": "L_rotation: loss of guessing which way images are turned",
    "pseudo_label/mask_rate": "mask: share of pseudo-labels sure enough to "
    "count",
    "pseudo_label/accuracy_all": "right: share of pseudo-labels that are right",
}


class Progress:
    """Shows two live lines on a terminal, and plain lines elsewhere.

    --verbosity=-1 shows warnings only, --verbosity=-2 not even these.

    Attributes:
        done: Steps done.
    """

    def __init__(
        self,
        start: int,
        steps: int,
        *,
        bar: bool,
        loud: bool = True,
        config: config_lib.Config | None = None,
        costs: duration.Costs | None = None,
        evaluation_steps: float = 0.0,
    ) -> None:
        """Starts at a step.

        Args:
            start: Steps done before this session.
            steps: Length of the run.
            bar: Show live lines if standard error is a terminal.
            loud: False shows nothing at all.
            config: The run's flags, with durations in steps: they tell what is
                still to come between steps.
            costs: What each part takes, if it was measured.
            evaluation_steps: If it was not, an evaluation takes as long as so
                many steps, until the first one is timed.
        """
        self.done = start
        self._steps = steps
        # The rate is that of the steps and seconds since these two.
        self._first, self._began = start, time.monotonic()
        self._config, self._evaluation_steps = config, evaluation_steps
        self._seconds = dataclasses.asdict(costs or duration.Costs(0.0))
        self._measured = costs is not None
        self._foretold = self._logged = self._explained = False
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
                "{rate_fmt}{postfix}"
            ),
        )
        self._bar.set_postfix_str("? left", refresh=False)
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
        began = time.monotonic()
        if self.done == self._first:
            self.say("compiling the step")
            began = self._began  # the input is set up before
        yield
        self._leave_out(time.monotonic() - began)
        self._first += count
        if not self._bar.disable:
            self._bar.initial += count

    @contextlib.contextmanager
    def aside(self, part: str) -> Iterator[None]:
        """Keeps the time of the body out of the rate of steps.

        Args:
            part: A field of `duration.Costs`: the last time that it took counts
                for those that are still to come. That of the first logged step
                does not, as it imports libraries.
        """
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        if part != "log" or self._logged:
            self._seconds[part] = seconds
        self._logged |= part == "log"
        self._measured |= part == "evaluation"
        self._leave_out(seconds)

    def _leave_out(self, seconds: float) -> None:
        self._began += seconds
        if not self._bar.disable:
            self._bar.start_t += seconds

    def time_anew(self) -> None:
        """Forgets how long steps took so far, because other work has ended."""
        self._leave_out(time.monotonic() - self._began)
        if not self._bar.disable:
            self._bar.initial += self.done - self._first
        self._first = self.done

    def _left(self) -> float | None:
        """Returns the seconds to the end; None before a step was timed."""
        if self.done <= self._first:
            return None
        timed = time.monotonic() - self._began
        step = timed / (self.done - self._first)
        if self._config is None:
            return (self._steps - self.done) * step
        parts = {**self._seconds, "step": step}
        if not self._measured:
            parts["evaluation"] = self._evaluation_steps * step
        return duration.seconds(
            duration.Costs(**parts), self._config, self.done
        )

    def foretell(self) -> None:
        """Says once when the run will end, as soon as steps were timed."""
        timed = time.monotonic() - self._began
        enough = self._logged and timed >= _TIMED_SECONDS
        left = self._left()
        if self._foretold or left is None or self.done >= self._steps:
            return
        if enough or timed >= _QUEUED_SECONDS:
            self._foretold = True
            self.say(f"ends in about {duration.written(left)}")

    def advance(self, step: int, values: Mapping[str, float] | None) -> None:
        """Moves on to a step.

        Args:
            step: Steps done.
            values: TensorBoard tag → value, if the step was logged.
        """
        steps, self.done = step - self.done, step
        left = self._left()
        if not self._bar.disable and left is not None:
            text = self._bar.format_interval(left)
            self._bar.set_postfix_str(f"{text} left", refresh=False)
        self._bar.update(steps)
        if values is None:
            return
        if not self._explained:
            self._explained = True
            meanings = [text for t, text in _MEANINGS.items() if t in values]
            if meanings:
                self.say("; ".join(meanings))
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
            if left is not None:
                timed = max(time.monotonic() - self._began, 1e-9)
                rate = (step - self._first) / timed
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
