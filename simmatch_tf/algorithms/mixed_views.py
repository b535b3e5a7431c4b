"""Base class of methods that train on mixtures of all views of a batch.

| here        | shape        | meaning                                         |
|-------------|--------------|-------------------------------------------------|
| B           |              | labeled images, and as many unlabeled ones      |
| V           |              | number of views, the first of labeled images    |
| v_0, v_1, … | [B, H, W, C] | the views, each of B images                     |
| t_0, t_1, … | [B, L]       | their targets                                   |

References:
    Berthelot et al., "MixMatch: A Holistic Approach to Semi-Supervised
    Learning", NeurIPS 2019, https://arxiv.org/abs/1905.02249. Code, with the
    exchange of images between batches: https://github.com/google-research/mixmatch
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from simmatch_tf.algorithms import algorithm, unlabeled_loss
from simmatch_tf.flags import errors, flagfiles
from simmatch_tf.lazy import tf
from simmatch_tf.modules import replica
from simmatch_tf.ops import losses, mixing, sampling

if TYPE_CHECKING:
    from simmatch_tf import config as config_lib


@dataclasses.dataclass(frozen=True)
class HyperParameters(unlabeled_loss.RampedWeight):
    """Batches of equal size, and the published ramp: 2^14 of 2^20 steps."""

    prefix = ""
    defaults = {"unlabeled_ratio": 1}
    ramp_share = 1 / 64

    @classmethod
    def prepare(cls, words: list[str]) -> list[str]:
        """Drops the --unlabeled_ratio of flagfiles, which are for others."""
        return [
            word
            for word in super().prepare(words)
            if not isinstance(word, flagfiles.FileWord)
            or flagfiles.name_of(word) != "unlabeled_ratio"
        ]

    def check_run(self, config: config_lib.Config) -> None:
        """Checks that the batches have one size."""
        super().check_run(config)
        if config.unlabeled_ratio != 1:
            raise errors.InputError(
                f"--unlabeled_ratio={config.unlabeled_ratio}: must be 1 with "
                f"--algorithm={config.algorithm}, which mixes labeled images "
                "with as many unlabeled ones; leave it out"
            )
        if config.batch_size < 4:
            raise errors.InputError(
                f"--batch_size={config.batch_size}: must be at least 4 with "
                f"--algorithm={config.algorithm}, which exchanges images "
                "between batches"
            )


class MixedViews(algorithm.Algorithm):
    """Mixes the images of all views, and trains on batches of these.

    A subclass writes `train_step`: targets and `mix` above the tape, `forward`
    below it, then its losses. The class of its flags derives from
    `HyperParameters`.
    """

    HyperParameters = HyperParameters

    def mix(
        self,
        views: Sequence[tf.Tensor],
        targets: Sequence[tf.Tensor],
        alpha: float,
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Mixes all images of the whole batch, whatever their view.

        Each replica mixes the images of all replicas with the same random
        numbers, and takes its own: their number changes nothing.

        Args:
            views: V views v_0, …, this replica's [B, H, W, C].
            targets: Their targets t_0, … [B, L].
            alpha: Of Beta(α, α), from which each image's share is drawn.

        Returns:
            The mixtures [B, H, W, C], from 0 to 255, and their targets [B, L];
            each image and target is mixed into its own place.
        """
        x = _of_all_replicas([tf.cast(view, self.dtype) for view in views])
        t = _of_all_replicas(targets)  # [V B, L] of the whole batch
        count = x.shape[0]
        share = sampling.beta(
            self.seed("share", shared=True), [count], alpha, dtype=self.dtype
        )
        order = sampling.permutation(self.seed("order", shared=True), count)
        x, t = (
            tf.split(mixed, len(views))
            for mixed in mixing.mix(x, t, order, share)
        )
        return [*map(replica.share, x)], [*map(replica.share, t)]

    def forward(
        self, views: Sequence[tf.Tensor], updates: int
    ) -> list[tf.Tensor]:
        """Runs the student on batches that have images of all views.

        The forwards use statistics of their own batch, and one of them updates
        BatchNorm's averages: of labeled images alone, these would not be those
        of the images that are evaluated.

        Args:
            views: V mixed views, this replica's [B, H, W, C].
            updates: Which of the batches updates the averages; -1: the last.

        Returns:
            Logits of the views, V times [B, L].
        """
        count = len(views)
        rows = views[0].shape[0] * replica.count()
        groups = replica.share(mixing.groups(rows, count))  # [B]
        logits = []
        for number, images in enumerate(mixing.interleave(views, groups)):
            mode = "train" if number == updates % count else "batch"
            out = self.call(self.student, images, batch_norm=mode)
            logits.append(out["logits"])
        return mixing.interleave(logits, groups)


def cross_entropy(
    logits: Sequence[tf.Tensor], targets: Sequence[tf.Tensor]
) -> tf.Tensor:
    """Returns the mean of H(t, softmax(logits)) over the images of some views.

    Args:
        logits: Of each view, [B, L].
        targets: t of each view, [B, L]; no gradient goes to it.
    """
    target = tf.concat(targets, 0)
    ones = tf.ones_like(target[:, 0])
    return losses.weighted_cross_entropy(tf.concat(logits, 0), target, ones)


def _of_all_replicas(views: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns [V B, ...], view by view, of this replica's V times [B, ...]."""
    # By one exchange, whatever the number of views.
    whole = replica.all_gather(tf.stack(views, axis=1))  # [B, V, ...]
    return tf.concat(tf.unstack(whole, axis=1), axis=0)
