"""The networks as PyTorch modules, written from the papers, for comparison.

Children have torchvision's names. Those of the WRN have the names of our Keras
layers, with "." in place of "_".
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

# Depth → (blocks of each of the four groups, whether they are bottlenecks).
RESNETS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}


def convolution(
    inputs: int, outputs: int, size: int, stride: int = 1
) -> nn.Conv2d:
    """Returns a convolution without bias, with padding size // 2."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions, each followed by BN, and the shortcut."""

    def __init__(self, inputs: int, filters: int, stride: int) -> None:
        super().__init__()
        self.outputs = filters
        self.conv1 = convolution(inputs, filters, 3, stride)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = convolution(filters, filters, 3)
        self.bn2 = nn.BatchNorm2d(filters)
        self.downsample = downsample(inputs, self.outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    """1×1, strided 3×3 (v1.5) and 1×1 convolution to four times the filters."""

    def __init__(self, inputs: int, filters: int, stride: int) -> None:
        super().__init__()
        self.outputs = 4 * filters
        self.conv1 = convolution(inputs, filters, 1)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = convolution(filters, filters, 3, stride)
        self.bn2 = nn.BatchNorm2d(filters)
        self.conv3 = convolution(filters, self.outputs, 1)
        self.bn3 = nn.BatchNorm2d(self.outputs)
        self.downsample = downsample(inputs, self.outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + self.downsample(x))


def downsample(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Returns the shortcut: a 1×1 convolution and BN if shapes change."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(
        convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
    )


class ResNet(nn.Module):
    """ResNet-depth without a classifier, [N, C, H, W] → [N, width].

    Args:
        depth: 18, 34, 50 or 101.
        multiplier: Of all filters.
        channels: C.
    """

    def __init__(
        self, depth: int, multiplier: int = 1, channels: int = 3
    ) -> None:
        super().__init__()
        groups, bottleneck = RESNETS[depth]
        make = Bottleneck if bottleneck else BasicBlock
        inputs = 64 * multiplier
        self.conv1 = convolution(channels, inputs, 7, 2)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for group, count in enumerate(groups):
            blocks = []
            for number in range(count):
                stride = 2 if group > 0 and number == 0 else 1
                filters = 64 * multiplier * 2**group
                blocks.append(make(inputs, filters, stride))
                inputs = blocks[-1].outputs
            setattr(self, f"layer{group + 1}", nn.Sequential(*blocks))
        self.width = inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes features [N, width] of images [N, C, H, W]."""
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=(2, 3))


def wide_norm(channels: int) -> nn.BatchNorm2d:
    """Returns the WRN's BN; 0.001 is the weight of the new statistics."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=1e-3)


def leak(x: torch.Tensor) -> torch.Tensor:
    """Returns the WRN's activation."""
    return nn.functional.leaky_relu(x, 0.1)


class WideBlock(nn.Module):
    """BN, activation, 3×3 convolution, twice, and the shortcut."""

    def __init__(
        self, inputs: int, filters: int, stride: int, very_first: bool
    ) -> None:
        super().__init__()
        self.very_first = very_first
        self.bn1 = wide_norm(inputs)
        self.conv1 = convolution(inputs, filters, 3, stride)
        self.bn2 = wide_norm(filters)
        self.conv2 = convolution(filters, filters, 3)
        self.shortcut = nn.Identity()
        if inputs != filters:
            self.shortcut = convolution(inputs, filters, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [N, inputs, H, W] to [N, filters, H / stride, W / stride]."""
        active = leak(self.bn1(x))
        y = self.conv2(leak(self.bn2(self.conv1(active))))
        return y + self.shortcut(active if self.very_first else x)


class WideResNet(nn.Module):
    """WRN-depth-multiplier, [N, C, H, W] → [N, 64 · multiplier].

    Args:
        depth: 6n + 4.
        multiplier: Of the 16, 32 and 64 filters.
        stem_stride: Of the first convolution.
        channels: C.
    """

    def __init__(
        self,
        depth: int,
        multiplier: int,
        stem_stride: int = 1,
        channels: int = 3,
    ) -> None:
        super().__init__()
        inputs = 16
        self.conv = convolution(channels, inputs, 3, stem_stride)
        for group in range(3):
            filters = 16 * multiplier * 2**group
            blocks = []
            for number in range((depth - 4) // 6):
                stride = 2 if group > 0 and number == 0 else 1
                very_first = group == number == 0
                blocks.append(WideBlock(inputs, filters, stride, very_first))
                inputs = filters
            setattr(self, f"group{group + 1}", nn.Sequential(*blocks))
        self.bn = wide_norm(inputs)
        self.width = inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes features [N, width] of images [N, C, H, W]."""
        x = self.group3(self.group2(self.group1(self.conv(x))))
        return leak(self.bn(x)).mean(dim=(2, 3))


class Network(nn.Module):
    """Backbone, classifier `fc` and projection `head`.

    Args:
        backbone: [N, 3, H, W] → [N, width].
        width: Of its features, and of the head's hidden layer.
        classes: L.
        dim: D.
    """

    def __init__(
        self, backbone: nn.Module, width: int, classes: int, dim: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.fc = nn.Linear(width, classes)
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim)
        )

    def forward(
        self, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns features [N, width], logits [N, L], embeddings [N, D]."""
        features = self.backbone(x)
        embeddings = nn.functional.normalize(self.head(features), dim=1)
        return features, self.fc(features), embeddings


class SimMatch(nn.Module):
    """Student, teacher, memory and DA window, as a published checkpoint.

    Args:
        make: Makes a Network of `classes` and `dim`.
        classes: L.
        dim: D.
        slots: K.
        window: W, batches of the DA window.
    """

    def __init__(
        self,
        make: Callable[[], Network],
        classes: int,
        dim: int,
        slots: int,
        window: int,
    ) -> None:
        super().__init__()
        self.main, self.ema = make(), make()
        self.register_buffer("bank", torch.zeros(dim, slots))
        self.register_buffer("labels", torch.zeros(slots, dtype=torch.long))
        self.register_buffer("DA_queue", torch.zeros(window, classes))
        self.register_buffer("DA_ptr", torch.zeros(1, dtype=torch.long))


class Wrapped(nn.Module):
    """Puts "module." in front of all names, as data-parallel training does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@torch.no_grad()
def randomize(module: nn.Module, seed: int) -> None:
    """Draws all weights, statistics and buffers, so that each one matters.

    The scales hold a deep network together without true statistics, and
    in training keep rounding from growing from block to block:
    convolutions are below He's scale, and the last BN of a residual block
    is small.

    Args:
        module: Any of this file.
        seed: Of the draw.
    """
    rng = torch.Generator().manual_seed(seed)

    def uniform(values: torch.Tensor, low: float, high: float) -> None:
        values.uniform_(low, high, generator=rng)

    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            fan_in = part.weight[0].numel()
            part.weight.normal_(0, fan_in**-0.5, generator=rng)
        elif isinstance(part, nn.Linear):
            bound = part.in_features**-0.5
            uniform(part.weight, -bound, bound)
            uniform(part.bias, -bound, bound)
        elif isinstance(part, nn.BatchNorm2d):
            uniform(part.weight, 0.5, 1.5)
            uniform(part.bias, -0.5, 0.5)
            uniform(part.running_mean, -0.5, 0.5)
            uniform(part.running_var, 0.5, 1.5)
        elif isinstance(part, SimMatch):
            window, classes = part.DA_queue.shape
            part.bank.normal_(generator=rng)
            part.bank.div_(part.bank.norm(dim=0))
            part.labels.random_(0, classes, generator=rng)
            uniform(part.DA_queue, 0.1, 1)
            part.DA_queue.div_(part.DA_queue.sum(dim=1, keepdim=True))
            part.DA_ptr.random_(0, window, generator=rng)
    for part in module.modules():
        if isinstance(part, BasicBlock):
            part.bn2.weight.mul_(0.3)
        elif isinstance(part, Bottleneck):
            part.bn3.weight.mul_(0.3)


def normalize(
    images: np.ndarray, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """(x / 255 - mean) / std, uint8 [N, H, W, C] → float32 [N, C, H, W]."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32) / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (mean, std))
    return (x - mean) / std
