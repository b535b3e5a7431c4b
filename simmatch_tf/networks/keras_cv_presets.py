"""Presets of KerasCV's image architectures: the arguments of their classes.

KerasCV downloads even the arguments of a preset without weights, so they are
written out here. Published weights belong to these arguments.
"""

from typing import Any

# Name → (class of keras_cv.models, its arguments).
Presets = dict[str, tuple[str, dict[str, Any]]]


def _resnets(class_name: str, suffix: str) -> Presets:
    plans = {
        18: ([2, 2, 2, 2], "basic_block"),
        34: ([3, 4, 6, 3], "basic_block"),
        50: ([3, 4, 6, 3], "block"),
        101: ([3, 4, 23, 3], "block"),
        152: ([3, 8, 36, 3], "block"),
    }
    return {
        f"resnet{depth}{suffix}": (
            class_name,
            {
                "stackwise_filters": [64, 128, 256, 512],
                "stackwise_blocks": blocks,
                "stackwise_strides": [1, 2, 2, 2],
                "block_type": kind,
            },
        )
        for depth, (blocks, kind) in plans.items()
    }


def _densenets() -> Presets:
    repeats = {
        121: [6, 12, 24, 16],
        169: [6, 12, 32, 32],
        201: [6, 12, 48, 32],
    }
    return {
        f"densenet{depth}": (
            "DenseNetBackbone",
            {
                "stackwise_num_repeats": blocks,
                "compression_ratio": 0.5,
                "growth_rate": 32,
            },
        )
        for depth, blocks in repeats.items()
    }


# Width and depth of the EfficientNets B0 to B7.
_SCALES = [
    (1.0, 1.0),
    (1.0, 1.1),
    (1.1, 1.2),
    (1.2, 1.4),
    (1.4, 1.8),
    (1.6, 2.2),
    (1.8, 2.6),
    (2.0, 3.1),
]
_EFFICIENTNET = {
    "stackwise_kernel_sizes": [3, 3, 5, 3, 5, 5, 3],
    "stackwise_num_repeats": [1, 2, 2, 3, 3, 4, 1],
    "stackwise_input_filters": [32, 16, 24, 40, 80, 112, 192],
    "stackwise_output_filters": [16, 24, 40, 80, 112, 192, 320],
    "stackwise_expansion_ratios": [1, 6, 6, 6, 6, 6, 6],
    "stackwise_strides": [1, 2, 2, 2, 1, 2, 1],
}


def _scaled(width: float, depth: float) -> dict[str, float]:
    return {"width_coefficient": width, "depth_coefficient": depth}


def _efficientnets() -> Presets:
    return {
        f"efficientnetv1_b{size}": (
            "EfficientNetV1Backbone",
            {
                **_EFFICIENTNET,
                "stackwise_squeeze_and_excite_ratios": [0.25] * 7,
                **_scaled(*scale),
            },
        )
        for size, scale in enumerate(_SCALES)
    } | {
        f"efficientnetlite_b{size}": (
            "EfficientNetLiteBackbone",
            {**_EFFICIENTNET, **_scaled(*scale)},
        )
        for size, scale in enumerate(_SCALES[:5])
    }


def _efficientnet_v2(
    repeats: list[int],
    filters: list[int],
    width: float = 1.0,
    depth: float = 1.0,
) -> tuple[str, dict[str, Any]]:
    """Takes the filters of the stem, followed by those of the stacks."""
    stacks = len(repeats)
    return (
        "EfficientNetV2Backbone",
        {
            "stackwise_kernel_sizes": [3] * stacks,
            "stackwise_num_repeats": repeats,
            "stackwise_input_filters": filters[:-1],
            "stackwise_output_filters": filters[1:],
            "stackwise_expansion_ratios": [1, 4, 4, 4, 6, 6, 6][:stacks],
            "stackwise_squeeze_and_excite_ratios": [0.0] * 3
            + [0.25] * (stacks - 3),
            "stackwise_strides": [1, 2, 2, 2, 1, 2, 1][:stacks],
            "stackwise_conv_types": ["fused"] * 3 + ["unfused"] * (stacks - 3),
            **_scaled(width, depth),
        },
    )


def _efficientnets_v2() -> Presets:
    small = [1, 2, 2, 3, 5, 8], [32, 16, 32, 48, 96, 112, 192]
    return {
        "efficientnetv2_s": _efficientnet_v2(
            [2, 4, 4, 6, 9, 15], [24, 24, 48, 64, 128, 160, 256]
        ),
        "efficientnetv2_m": _efficientnet_v2(
            [3, 5, 5, 7, 14, 18, 5], [24, 24, 48, 80, 160, 176, 304, 512]
        ),
        "efficientnetv2_l": _efficientnet_v2(
            [4, 7, 7, 10, 19, 25, 7], [32, 32, 64, 96, 192, 224, 384, 640]
        ),
    } | {
        f"efficientnetv2_b{size}": _efficientnet_v2(*small, *_SCALES[size])
        for size in range(4)
    }


def _darknets() -> Presets:
    csp = {
        "tiny": (48, [1, 3, 3, 1]),
        "s": (64, [1, 3, 3, 1]),
        "m": (96, [2, 6, 6, 2]),
        "l": (128, [3, 9, 9, 3]),
        "xl": (170, [4, 12, 12, 4]),
    }
    yolo = {
        "xs": ([32, 64, 128, 256], [1, 2, 2, 1]),
        "s": ([64, 128, 256, 512], [1, 2, 2, 1]),
        "m": ([96, 192, 384, 576], [2, 4, 4, 2]),
        "l": ([128, 256, 512, 512], [3, 6, 6, 3]),
        "xl": ([160, 320, 640, 640], [3, 6, 6, 3]),
    }
    return {
        f"csp_darknet_{size}": (
            "CSPDarkNetBackbone",
            {
                "stackwise_channels": [width * 2**i for i in range(4)],
                "stackwise_depth": depths,
            },
        )
        for size, (width, depths) in csp.items()
    } | {
        f"yolo_v8_{size}_backbone": (
            "YOLOV8Backbone",
            {"stackwise_channels": channels, "stackwise_depth": depths},
        )
        for size, (channels, depths) in yolo.items()
    }


def _mobilenets() -> Presets:
    return {
        "mobilenet_v3_small": (
            "MobileNetV3Backbone",
            {
                "stackwise_expansion": [1, 72 / 16, 88 / 24, 4, 6, 6, 3, 3]
                + [6] * 3,
                "stackwise_filters": [16, 24, 24] + [40] * 3 + [48] * 2
                + [96] * 3,
                "stackwise_kernel_size": [3] * 3 + [5] * 8,
                "stackwise_stride": [2, 2, 1, 2, 1, 1, 1, 1, 2, 1, 1],
                "stackwise_se_ratio": [0.25, None, None] + [0.25] * 8,
                "stackwise_activation": ["relu"] * 3 + ["hard_swish"] * 8,
            },
        ),
        "mobilenet_v3_large": (
            "MobileNetV3Backbone",
            {
                "stackwise_expansion": [1, 4, 3, 3, 3, 3, 6, 2.5, 2.3, 2.3]
                + [6] * 5,
                "stackwise_filters": [16, 24, 24] + [40] * 3 + [80] * 4
                + [112] * 2 + [160] * 3,
                "stackwise_kernel_size": [3] * 3 + [5] * 3 + [3] * 6
                + [5] * 3,
                "stackwise_stride": [1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1]
                + [2, 1, 1],
                "stackwise_se_ratio": [None] * 3 + [0.25] * 3 + [None] * 4
                + [0.25] * 5,
                "stackwise_activation": ["relu"] * 6 + ["hard_swish"] * 9,
            },
        ),
    }  # fmt: skip


def _mix_transformers() -> Presets:
    depths = [
        [2, 2, 2, 2],
        [2, 2, 2, 2],
        [3, 4, 6, 3],
        [3, 4, 18, 3],
        [3, 8, 27, 3],
        [3, 6, 40, 3],
    ]
    return {
        f"mit_b{size}": (
            "MiTBackbone",
            {
                "depths": blocks,
                "embedding_dims": [
                    width * (64 if size else 32) for width in (1, 2, 5, 8)
                ],
            },
        )
        for size, blocks in enumerate(depths)
    }


def _vision_transformers() -> Presets:
    plans = {
        "base": (768, 12, 12),
        "large": (1024, 24, 16),
        "huge": (1280, 32, 16),
    }
    return {
        f"vitdet_{size}": (
            "ViTDetBackbone",
            {
                "embed_dim": width,
                "depth": depth,
                "mlp_dim": 4 * width,
                "num_heads": heads,
                # The last block of each quarter attends to the whole image.
                "global_attention_indices": [
                    depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)
                ],
            },
        )
        for size, (width, depth, heads) in plans.items()
    }


PRESETS: Presets = {
    **_resnets("ResNetBackbone", ""),
    **_resnets("ResNetV2Backbone", "_v2"),
    **_densenets(),
    **_efficientnets(),
    **_efficientnets_v2(),
    **_darknets(),
    **_mobilenets(),
    **_mix_transformers(),
    **_vision_transformers(),
}

# Those whose weights, trained on ImageNet, are published.
PUBLISHED = (
    "resnet50",
    "resnet50_v2",
    "densenet121",
    "densenet169",
    "densenet201",
    "efficientnetv2_s",
    "efficientnetv2_b0",
    "efficientnetv2_b1",
    "efficientnetv2_b2",
    "csp_darknet_tiny",
    "csp_darknet_l",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "mit_b0",
)
