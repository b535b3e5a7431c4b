"""Flags of methods that align predictions with class shares.

References:
    Berthelot et al., "ReMixMatch: Semi-Supervised Learning with Distribution
    Alignment and Augmentation Anchoring", ICLR 2020,
    https://arxiv.org/abs/1911.09785.
"""

from __future__ import annotations

import dataclasses

from simmatch_tf.flags import commandline, errors, flagfiles
from simmatch_tf.flags.commandline import flag, rare

# What absl takes for false.
_FALSE = ("false", "f", "no", "n", "0")

HELP = (
    "Class shares that distribution alignment aims at: uniform, labeled (those "
    "of the labeled images), or a CSV file with a class and its share a line."
)


@dataclasses.dataclass(frozen=True)
class Prior(commandline.HyperParameters):
    """Whether to align, and with which shares."""

    prefix = ""

    align: bool = rare(True, "Whether to apply distribution alignment.")
    class_prior: str = flag("uniform", HELP)

    @classmethod
    def prepare(cls, words: list[str]) -> list[str]:
        """Drops the prior of a flagfile where alignment is off."""
        aligns = cls.declared()["align"].default
        for word in words:
            if flagfiles.name_of(word) == "noalign":
                aligns = False
            elif flagfiles.name_of(word) == "align":
                aligns = word.partition("=")[2].lower() not in _FALSE
        return [
            word
            for word in super().prepare(words)
            if aligns
            or not isinstance(word, flagfiles.FileWord)
            or flagfiles.name_of(word) != "class_prior"
        ]

    def check(self) -> None:
        """Checks flags that depend on others."""
        super().check()
        if not self.class_prior.strip():
            raise errors.InputError(
                f"--class_prior={self.class_prior!r}: must be uniform, labeled "
                "or a CSV file"
            )
        usual = type(self).declared()["class_prior"].default
        if self.class_prior not in ("uniform", usual) and not self.align:
            raise errors.InputError(
                f"--class_prior={self.class_prior}: is what distribution "
                "alignment aims at, which is off; give --align, or leave out "
                "--class_prior"
            )


@dataclasses.dataclass(frozen=True)
class HyperParameters(Prior):
    """Whether to align, over how many batches, and with which shares."""

    prefix = ""

    da_window: int = rare(
        32,
        "Number of batches that distribution alignment averages over.",
        low=1,
    )
