"""What weak views say of an image, its strong view is to say: in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

from simmatch_tf import config as config_lib
from simmatch_tf.algorithms import algorithm, diagnostics
from simmatch_tf.lazy import keras, np, tf
from simmatch_tf.modules import alignment


class Targets(NamedTuple):
    """What weak views give; no gradient goes to any of it.

    Attributes:
        p_w: Class probabilities, aligned if the run aligns, [U, L].
        z_w: Unit embeddings [U, D]; None of a network without projection head.
        z_l: Those of the labeled images, for the memory, [B, D]; likewise.
    """

    p_w: tf.Tensor
    z_w: tf.Tensor | None
    z_l: tf.Tensor | None


class WeakStrong(algorithm.Algorithm):
    """An algorithm that learns from pairs of weak and strong views.

    A subclass writes `train_step`: `label` above the tape, `forward` below it,
    then its losses. The letters are those of `simmatch`.

    Attributes:
        from_teacher: Whether the EMA teacher sees the weak views, not the
            student.
        aligns: Whether p^w is aligned.
        align: The distribution alignment's window.
        published_align: Whether it is by default.
    """

    published_align: ClassVar[bool] = True

    def __init__(
        self,
        config: config_lib.Config,
        make_network: Callable[[], keras.Model],
        *,
        num_classes: int,
        slot_labels: np.ndarray,
    ) -> None:
        """See `Algorithm`; adds the window."""
        super().__init__(
            config,
            make_network,
            num_classes=num_classes,
            slot_labels=slot_labels,
        )
        self.from_teacher = config.memory == "teacher"
        self.weights_of_record = "student" if self.from_teacher else "ema"
        self.aligns = config.align
        if self.aligns is None:
            self.aligns = self.published_align
        self.align = alignment.DistributionAlignment(
            num_classes, config.da_window, self.dtype
        )

    def label(self, x_l: tf.Tensor, x_w: tf.Tensor) -> Targets | None:
        """What weak views give in a forward of their own, without gradient.

        Args:
            x_l: Labeled images [B, H, W, C].
            x_w: Weak views of unlabeled images [U, H, W, C].

        Returns:
            The targets, z^l of the teacher or None; or None, where the weak
            views are in the student's one forward.
        """
        if self.from_teacher:
            # Differs: by default on averaged BatchNorm statistics (EMAN).
            seed = tf.stack([self.config.seed, tf.cast(self.step, tf.int32)])
            out = self.teacher(tf.concat([x_l, x_w], 0), seed)
            return self._targets(out, x_l.shape[0])
        if self.config.weak_forward == "separate":
            # Differs: by --weak_forward; batch statistics are the weak views',
            # and their averages move twice a step.
            return self._targets(self.student(x_w, training=True), 0)
        return None

    def forward(
        self,
        x_l: tf.Tensor,
        x_s: tf.Tensor,
        x_w: tf.Tensor,
        targets: Targets | None,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None, Targets]:
        """The student's one forward.

        Args:
            x_l: Labeled images [B, H, W, C].
            x_s: Strong views of unlabeled images [U, H, W, C].
            x_w: Their weak views, likewise.
            targets: What `label` gave.

        Returns:
            Logits [B, L] and [U, L], z^s [U, D] (None of a network without
            projection head), and the targets, whole.
        """
        b, u = x_l.shape[0], x_s.shape[0]
        views = [x_l, x_s] if targets else [x_l, x_s, x_w]
        out = self.student(tf.concat(views, 0), training=True)
        logits, z = out["logits"], out.get("embeddings")
        if targets is None:
            still = tf.nest.map_structure(tf.stop_gradient, out)
            targets = self._targets(still, b, b + u)
        elif targets.z_l is None and z is not None:
            targets = targets._replace(z_l=tf.stop_gradient(z[:b]))
        z_s = None if z is None else z[b : b + u]
        return logits[:b], logits[b : b + u], z_s, targets

    def watch(
        self,
        batch: dict[str, tf.Tensor],
        targets: Targets,
        p_hat: tf.Tensor,
        mask: tf.Tensor,
    ) -> dict[str, diagnostics.Packed]:
        """What is seen of this step, for its metrics, if it is watched."""
        return self.layout.watch(
            batch, lambda: self._look(batch, targets, p_hat, mask)
        )

    def _look(
        self,
        batch: dict[str, tf.Tensor],
        targets: Targets,
        p_hat: tf.Tensor,
        mask: tf.Tensor,
    ) -> diagnostics.Seen:
        """Computes what is seen; see `watching`."""
        align = self.align if self.aligns else None
        return diagnostics.pseudo_labels(batch, targets.p_w, p_hat, mask, align)

    def _targets(
        self, out: dict[str, tf.Tensor], labeled: int, skip: int | None = None
    ) -> Targets:
        """Targets from a forward whose first rows are the labeled images.

        Args:
            out: A network's outputs.
            labeled: How many these are.
            skip: Rows before those of the weak views; default: the same.
        """
        skip = labeled if skip is None else skip
        p_w = tf.nn.softmax(out["logits"][skip:])
        if self.aligns:
            p_w = self.align(p_w)
        if "embeddings" not in out:
            return Targets(p_w, None, None)
        z = out["embeddings"]
        return Targets(p_w, z[skip:], z[:labeled] if labeled else None)
