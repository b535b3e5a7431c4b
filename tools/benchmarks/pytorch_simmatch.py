"""SimMatch's training step in plain PyTorch, formula by formula.

`benchmark_pytorch.py` compares our step with it. It takes a run's `Config`.
Letters and shapes are those of simmatch_tf/algorithms/simmatch.py.

References:
    Zheng et al., "SimMatch: Semi-supervised Learning with Similarity
    Matching", CVPR 2022, https://arxiv.org/abs/2203.06915
"""

import contextlib
import math
import re

import pytorch_networks
import torch
from torch.nn import functional

from simmatch_tf import config as config_lib


def make_network(
    config: config_lib.Config, classes: int, channels: int
) -> pytorch_networks.Network:
    """Returns the network that a run's flags name.

    Raises:
        ValueError: Its backbone is neither a WRN nor a ResNet.
    """
    if match := re.fullmatch(r"wrn_(\d+)_(\d+)", config.backbone):
        backbone = pytorch_networks.WideResNet(
            int(match[1]), int(match[2]), config.stem_stride, channels
        )
    elif match := re.fullmatch(r"resnet(\d+)(?:x(\d+))?", config.backbone):
        backbone = pytorch_networks.ResNet(
            int(match[1]), int(match[2] or 1), channels
        )
    else:
        raise ValueError(
            f"--backbone={config.backbone}: must be wrn_DEPTH_WIDTH or "
            "resnetDEPTH"
        )
    for part in backbone.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            if config.batch_norm_momentum is not None:
                part.momentum = 1 - config.batch_norm_momentum
    return pytorch_networks.Network(
        backbone, backbone.width, classes, config.projection_dim
    )


def make_optimizer(
    config: config_lib.Config, network: torch.nn.Module
) -> torch.optim.Optimizer:
    """Returns SGD with Nesterov momentum and L2 in the gradient."""
    everywhere = config.weight_decay_on == "all"
    kernels = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim == 1]
    decay = config.weight_decay
    return torch.optim.SGD(
        [
            {"params": kernels, "weight_decay": decay},
            {"params": vectors, "weight_decay": decay * everywhere},
        ],
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=True,
        fused=True,  # the fastest form on a CPU
    )


def propagate(
    z_w: torch.Tensor,
    p_w: torch.Tensor,
    memory: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    alpha: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns pseudo-labels p̂ [U, L] and q̂ [U, K]; every class has a slot."""
    q_w = torch.softmax(z_w @ memory.T / temperature, 1)  # [U, K], Eq. 3
    q_hat = q_w * p_w[:, labels]  # [U, K], Eq. 7 and 8
    q_hat /= q_hat.sum(1, keepdim=True)
    q_agg = torch.zeros_like(p_w).scatter_add_(
        1, labels.expand_as(q_w), q_w
    )  # [U, L], Eq. 9
    return alpha * p_w + (1 - alpha) * q_agg, q_hat  # Eq. 10


def instance_loss(
    z_s: torch.Tensor,
    memory: torch.Tensor,
    q_hat: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Returns L_in, the mean of H(q̂, q^s)."""
    log_q_s = functional.log_softmax(z_s @ memory.T / temperature, 1)
    return -(q_hat * log_q_s).sum(1).mean()


def matching(
    z_w: torch.Tensor,
    z_s: torch.Tensor,
    p_w: torch.Tensor,
    memory: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    alpha: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a step does with the memory but for writing it.

    Args:
        z_w: Of the weak views, unit rows [U, D].
        z_s: Of the strong views, unit rows [U, D].
        p_w: Aligned class probabilities [U, L].
        memory: Q_f [K, D], unit rows.
        labels: Q_l [K], int64; every class has a slot.
        temperature: t.
        alpha: α.

    Returns:
        p̂ [U, L]; L_in; its gradient to `z_s` [U, D].
    """
    with torch.no_grad():
        p_hat, q_hat = propagate(z_w, p_w, memory, labels, temperature, alpha)
    z_s = z_s.detach().requires_grad_()
    loss = instance_loss(z_s, memory, q_hat, temperature)
    (gradient,) = torch.autograd.grad(loss, z_s)
    return p_hat, loss.detach(), gradient


def learning_rate(config: config_lib.Config, step: int) -> float:
    """Returns the learning rate of a step, counted from 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "cosine_7_16":
        shape = math.cos(7 * math.pi * step / (16 * config.steps))
    elif config.schedule == "half_cosine":
        rest = max(config.steps - config.warmup_steps, 1)
        done = (step - config.warmup_steps) / rest
        shape = (1 + math.cos(math.pi * done)) / 2
    else:
        shape = 1.0
    return config.learning_rate * shape


class SimMatch:
    """A run's state, and its step.

    Attributes:
        student: The network that is trained.
        teacher: Its EMA, of weights and BatchNorm's statistics.
        averaged: Weights and statistics of the teacher, and of the student.
        sgd: The optimizer.
        memory: Q_f [K, D].
        labels: Q_l [K].
        filled: [K], which slots were written.
        window: [W, L], mean prediction of each of the last batches.
        steps: Steps done.
    """

    def __init__(
        self,
        config: config_lib.Config,
        labels: torch.Tensor,
        *,
        classes: int,
        mean: list[float],
        std: list[float],
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        bfloat16: bool = False,
    ) -> None:
        """Starts with random weights and an empty memory.

        Args:
            config: The run's, with its durations in steps.
            labels: Q_l [K], int64.
            classes: L.
            mean: Of each channel of the images, in units of 1 (white).
            std: Likewise.
            dtype: Of weights, losses and memory.
            channels_last: The layout of images and kernels.
            bfloat16: The network computes in that, by autocast.
        """
        self.config, self.labels = config, labels
        self.dtype, self.bfloat16 = dtype, bfloat16
        self.layout = torch.contiguous_format
        if channels_last:
            self.layout = torch.channels_last
        self.student, self.teacher = (
            make_network(config, classes, len(mean)).to(
                dtype=dtype, memory_format=self.layout
            )
            for _ in range(2)
        )
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.eval().requires_grad_(False)
        self.averaged = [
            [x for x in network.state_dict().values() if x.is_floating_point()]
            for network in (self.teacher, self.student)
        ]
        self.sgd = make_optimizer(config, self.student)
        self.memory = torch.zeros(
            len(labels), config.projection_dim, dtype=dtype
        )
        self.filled = torch.zeros(len(labels), dtype=torch.bool)
        self.window = torch.zeros(config.da_window, classes, dtype=dtype)
        self.mean, self.std = (
            torch.tensor(values)[:, None, None] for values in (mean, std)
        )
        self.steps = 0

    def forward(
        self, network: pytorch_networks.Network, *views: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns logits and embeddings of uint8 images [N, H, W, C]."""
        x = torch.cat(views).permute(0, 3, 1, 2)
        x = x.to(torch.float32, memory_format=self.layout)
        x = x.div_(255).sub_(self.mean).div_(self.std).to(self.dtype)
        precision = contextlib.nullcontext()
        if self.bfloat16:
            precision = torch.autocast("cpu", torch.bfloat16)
        with precision:
            _, logits, z = network(x)
        return logits.to(self.dtype), z.to(self.dtype)

    def step(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Takes one step of Algorithm 1.

        Args:
            batch: As ours: `labeled_weak`, `unlabeled_weak` and
                `unlabeled_strong`, uint8 [·, H, W, C]; `labels` and `slots` of
                the labeled images, int64 [B].

        Returns:
            The losses, and the share of pseudo-labels that are kept.
        """
        x_l, y = batch["labeled_weak"], batch["labels"]
        x_w, x_s = batch["unlabeled_weak"], batch["unlabeled_strong"]
        c, b, u = self.config, len(x_l), len(x_w)
        ready = self.steps >= c.matching_start_steps and self.filled.all()
        if c.targets_from == "teacher":
            with torch.no_grad():
                logits, z = self.forward(self.teacher, x_l, x_w)
            logits_w, z_l, z_w = logits[b:], z[:b], z[b:]
            logits, z = self.forward(self.student, x_l, x_s)
        elif c.weak_forward == "separate":
            with torch.no_grad():
                logits_w, z_w = self.forward(self.student, x_w)
            logits, z = self.forward(self.student, x_l, x_s)
            z_l = z[:b].detach()
        else:
            logits, z = self.forward(self.student, x_l, x_s, x_w)
            logits_w = logits[b + u :].detach()
            z_l, z_w = z[:b].detach(), z[b + u :].detach()
        logits_l, logits_s, z_s = logits[:b], logits[b : b + u], z[b : b + u]
        p_hat = p_w = self.align(torch.softmax(logits_w, 1))
        # A factor of 0: the head has gradients, and decays as it does later.
        loss_in = 0 * z_s.sum()
        if ready:
            p_hat, q_hat = propagate(
                z_w, p_w, self.memory, self.labels, c.temperature, c.alpha
            )
            loss_in = instance_loss(z_s, self.memory, q_hat, c.temperature)
        loss_s = functional.cross_entropy(logits_l, y)
        mask = (p_hat.amax(1) >= c.threshold).to(self.dtype)
        entropies = functional.cross_entropy(logits_s, p_hat, reduction="none")
        loss_u = (mask * entropies).mean()
        loss = loss_s + c.lambda_u * loss_u + c.lambda_in * loss_in
        self.minimize(loss)
        self.write(batch["slots"], z_l)
        self.steps += 1
        losses = {"total": loss, "s": loss_s, "u": loss_u, "in": loss_in}
        losses = {f"loss/{k}": value.detach() for k, value in losses.items()}
        return losses | {"pseudo_label/mask_rate": mask.mean()}

    def minimize(self, loss: torch.Tensor) -> None:
        """Applies the optimizer, then the EMA of weights and statistics."""
        c = self.config
        for group in self.sgd.param_groups:
            group["lr"] = learning_rate(c, self.steps)
        self.sgd.zero_grad()
        loss.backward()
        self.sgd.step()
        m = c.ema_momentum
        if c.ema_warmup:
            m = min(m, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(*self.averaged, 1 - m)

    def align(self, p: torch.Tensor) -> torch.Tensor:
        """Aligns p: divides it by the mean of the last batches, with this."""
        size = len(self.window)
        self.window[self.steps % size] = p.mean(0)
        mean = self.window.sum(0) / min(self.steps + 1, size)
        p = p / torch.where(mean > 0, mean, 1)
        return p / p.sum(1, keepdim=True)

    def write(self, slots: torch.Tensor, z: torch.Tensor) -> None:
        """Writes embeddings [B, D]; a repeated slot gets their mean."""
        m = 0.0
        if self.config.targets_from == "student":
            m = self.config.memory_momentum
        slots, places = slots.unique(return_inverse=True)
        z = torch.zeros_like(z[: len(slots)]).index_add_(0, places, z)
        z = functional.normalize(z)
        m = m * self.filled[slots, None].to(self.dtype)
        z = m * self.memory[slots] + (1 - m) * z
        self.memory[slots] = functional.normalize(z)
        self.filled[slots] = True
