"""Base class of methods that train strong views on pseudo-labels of weak views.

The letters are those of `simmatch`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from simmatch_tf.algorithms import (
    algorithm,
    class_shares,
    diagnostics,
    unlabeled_loss,
)
from simmatch_tf.flags import commandline, errors
from simmatch_tf.flags.commandline import flag, rare, rare_operational
from simmatch_tf.lazy import tf
from simmatch_tf.modules import alignment


class Targets(NamedTuple):
    """What the weak views give; no gradient goes to any of it.

    Attributes:
        p_w: Class probabilities, aligned if the run aligns, [U, L].
        z_w: Unit embeddings [U, D]; None without a projection head.
        z_l: Unit embeddings of the labeled images [B, D], for the memory bank;
            None without a projection head.
    """

    p_w: tf.Tensor
    z_w: tf.Tensor | None
    z_l: tf.Tensor | None


@dataclasses.dataclass(frozen=True)
class HyperParameters(unlabeled_loss.Weight):
    """Flags of every method that has pseudo-labels with a threshold."""

    prefix = ""

    threshold: float = flag(
        0.95,
        "Confidence threshold tau: smallest confidence of a pseudo-label.",
        low=0,
        high=1,
    )


@dataclasses.dataclass(frozen=True)
class TeacherNorm(commandline.HyperParameters):
    """Flag of every method whose EMA teacher predicts pseudo-labels."""

    prefix = ""

    teacher_norm: str = rare(
        "eman",
        "BatchNorm of a teacher that predicts the pseudo-labels: running "
        "averages (eman), or statistics of each batch, shuffled over the "
        "devices.",
        choices=("eman", "shuffle"),
    )


@dataclasses.dataclass(frozen=True)
class MemoryPlacement(commandline.HyperParameters):
    """Flag of every method whose memory may be divided."""

    prefix = ""

    memory_placement: str = rare_operational(
        "replicated",
        "Memory of the method on several devices: whole on each, or divided "
        "among them.",
        choices=("replicated", "sharded"),
    )


@dataclasses.dataclass(frozen=True)
class TargetFlags(
    TeacherNorm, class_shares.HyperParameters, unlabeled_loss.Weight
):
    """Flags of subclasses of `PseudoLabeling` without a fixed threshold."""

    prefix = ""

    targets_from: str = flag(
        "student",
        "Network that predicts the pseudo-labels from the weak views: as "
        "published, the student for small label sets (temporal ensemble), and "
        "its EMA teacher for ImageNet.",
        choices=("teacher", "student"),
    )
    weak_forward: str = rare(
        "joint",
        "Forward pass of the weak views with --targets_from=student: jointly "
        "with the student's other images, or separately, which needs less "
        "memory.",
        choices=("joint", "separate"),
    )

    def check(self) -> None:
        """Checks flags that depend on others."""
        super().check()
        if self.teacher_norm == "shuffle" and self.targets_from != "teacher":
            raise errors.InputError(
                "--teacher_norm=shuffle: is for --targets_from=teacher; "
                "elsewhere the teacher uses running averages only"
            )
        if self.weak_forward == "separate" and self.targets_from != "student":
            raise errors.InputError(
                "--weak_forward=separate: is for --targets_from=student; "
                "elsewhere weak views have a forward pass of their own already"
            )


@dataclasses.dataclass(frozen=True)
class TargetHyperParameters(TargetFlags, HyperParameters):
    """Flags of subclasses of `PseudoLabeling`, which computes the targets."""

    prefix = ""


class PseudoLabeling(algorithm.Algorithm):
    """Learns from pairs of a weak and a strong view of each unlabeled image.

    A subclass writes `train_step`: `label` above the tape, `forward` below it,
    then its losses. If it has flags of its own, their class derives from
    `TargetHyperParameters`, or from `TargetFlags` if it has no --threshold.

    Attributes:
        align: The distribution alignment.
    """

    HyperParameters = TargetHyperParameters

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Checks that a subclass has the flags that this class reads.

        Raises:
            TypeError: It does not have them.
        """
        super().__init_subclass__(**kwargs)
        if not issubclass(cls.HyperParameters, TargetFlags):
            raise TypeError(
                f"{cls.__qualname__}.HyperParameters: must derive from "
                "pseudo_labeling.TargetHyperParameters, or TargetFlags, "
                "because PseudoLabeling reads flags such as --targets_from"
            )

    @property
    def from_teacher(self) -> bool:
        """Whether the EMA teacher sees the weak views, not the student."""
        return self.config.targets_from == "teacher"

    @property
    def evaluated_weights(self) -> str:
        """Those of the student if the teacher labels, else the EMA's."""
        return "student" if self.from_teacher else "ema"

    @property
    def eman(self) -> bool:
        """Whether the teacher runs on averaged BatchNorm statistics."""
        return self.config.teacher_norm == "eman"

    @property
    def aligns(self) -> bool:
        """Whether p^w is aligned."""
        return self.config.align

    def build_state(self) -> None:
        """Makes the window of the alignment."""
        # Differs: by --class_prior. SimMatch aims at equal shares alone.
        self.align = alignment.DistributionAlignment(
            self.num_classes,
            self.config.da_window,
            self.dtype,
            self.class_prior,
        )

    def label(self, x_l: tf.Tensor, x_w: tf.Tensor) -> Targets | None:
        """Runs the weak views in a forward of their own, without gradient.

        Args:
            x_l: Labeled images [B, H, W, C].
            x_w: Weak views of unlabeled images [U, H, W, C].

        Returns:
            The targets, with the teacher's z^l or None; or None where the weak
            views are part of the student's one forward.
        """
        if self.from_teacher:
            # Differs: by default on averaged BatchNorm statistics (EMAN).
            seed = tf.stack([self.config.seed, tf.cast(self.step, tf.int32)])
            out = self.teacher(tf.concat([x_l, x_w], 0), seed)
            return self._targets(out, x_l.shape[0])
        if self.config.weak_forward == "separate":
            # Differs: by --weak_forward; batch statistics are the weak views',
            # and their averages move twice a step.
            return self._targets(self.call(self.student, x_w), 0)
        return None

    def forward(
        self,
        x_l: tf.Tensor,
        x_s: tf.Tensor,
        x_w: tf.Tensor,
        targets: Targets | None,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None, Targets]:
        """Runs the student's one forward.

        Args:
            x_l: Labeled images [B, H, W, C].
            x_s: Strong views of unlabeled images [U, H, W, C].
            x_w: Weak views of the same images, likewise.
            targets: What `label` returned.

        Returns:
            Logits [B, L] and [U, L]; z^s [U, D], None without a projection
            head; and the complete targets.
        """
        b, u = x_l.shape[0], x_s.shape[0]
        views = [x_l, x_s] if targets else [x_l, x_s, x_w]
        out = self.call(self.student, tf.concat(views, 0))
        logits, z = out["logits"], out.get("embeddings")
        if targets is None:
            constant = tf.nest.map_structure(tf.stop_gradient, out)
            targets = self._targets(constant, b, b + u)
        elif targets.z_l is None and z is not None:
            targets = targets._replace(z_l=tf.stop_gradient(z[:b]))
        z_s = None if z is None else z[b : b + u]
        return logits[:b], logits[b : b + u], z_s, targets

    def _diagnostics(
        self,
        batch: algorithm.Batch,
        targets: Targets,
        p_hat: tf.Tensor,
        mask: tf.Tensor,
    ) -> diagnostics.Diagnostics:
        """Computes the diagnostics of the pseudo-labels p̂ [U, L]."""
        align = self.align if self.aligns else None
        return diagnostics.pseudo_labels(batch, targets.p_w, p_hat, mask, align)

    def _targets(
        self, out: dict[str, tf.Tensor], labeled: int, skip: int | None = None
    ) -> Targets:
        """Returns the targets in a network's outputs.

        Args:
            out: The outputs. Their first rows are those of labeled images.
            labeled: Number of these.
            skip: Rows before those of the weak views; default: `labeled`.
        """
        skip = labeled if skip is None else skip
        p_w = tf.nn.softmax(out["logits"][skip:])
        if self.aligns:
            p_w = self.align(p_w)
        if "embeddings" not in out:
            return Targets(p_w, None, None)
        z = out["embeddings"]
        return Targets(p_w, z[skip:], z[:labeled] if labeled else None)
