"""What a person sees while a run goes on."""

import sys
import time

import tqdm
from absl import flags, logging


def quiet() -> bool:
    """Whether a command was given a --verbosity below 0, that of progress."""
    return flags.FLAGS.is_parsed() and logging.get_verbosity() < logging.INFO


class Progress:
    """A bar on a terminal, plain lines elsewhere; silent below --verbosity=0.

    Attributes:
        done: Step that the bar shows.
    """

    def __init__(
        self, start: int, steps: int, *, bar: bool, loud: bool = True
    ) -> None:
        """Starts at a step.

        Args:
            start: Steps done before.
            steps: Length of the run.
            bar: Show a bar if standard error is a terminal.
            loud: Say anything at all.
        """
        self.done = start
        self._start, self._steps, self._began = start, steps, time.monotonic()
        self._loud = loud and not quiet()
        self._bar = tqdm.tqdm(
            total=steps,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            disable=not (bar and self._loud and sys.stderr.isatty()),
        )

    def advance(self, step: int, metrics: dict[str, float] | None) -> None:
        """Moves to a step; `metrics` where they were fetched."""
        self._bar.update(step - self.done)
        self.done = step
        if metrics is None:
            return
        shown = {
            name.rsplit("/", 1)[-1]: f"{metrics[name]:.3f}"
            for name in metrics
            if name.startswith("loss/") or name.endswith("mask_rate")
        }
        if not self._bar.disable:
            self._bar.set_postfix(shown)
        elif self._loud:
            rate = (step - self._start) / (time.monotonic() - self._began)
            left = (self._steps - step) / max(rate, 1e-9)
            figures = ", ".join(f"{k} {v}" for k, v in shown.items())
            self.say(
                f"step {step}/{self._steps}: {figures} "
                f"({rate:.2f} steps/s, {left:.0f} s left)"
            )

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._loud:
            tqdm.tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()
