"""The views of two recipes by Pillow and NumPy, image by image.

The published PyTorch pipelines work in this way: every image is a Pillow image,
every operation one call on it, every random number one call of `random`. The
views end in arrays of bytes.
"""

import io
import math
import random as random_lib
from collections.abc import Callable

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageFilter
import PIL.ImageOps

PAD, CUTOUT, GREY = 4, 16, 127
SIDE = 224

Operation = Callable[[PIL.Image.Image, float], PIL.Image.Image]


def _flip_crop(
    image: PIL.Image.Image, random: random_lib.Random
) -> PIL.Image.Image:
    """Mirrors half of the images, and crops out of a reflected border."""
    if random.random() < 0.5:
        image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    border = [[PAD, PAD], [PAD, PAD], [0, 0]]
    padded = np.pad(np.asarray(image), border, "reflect")
    left, top = random.randint(0, 2 * PAD), random.randint(0, 2 * PAD)
    width, height = image.size
    return PIL.Image.fromarray(padded).crop(
        (left, top, left + width, top + height)
    )


def _enhance(enhancer: type) -> Operation:
    return lambda image, r: enhancer(image).enhance(0.05 + 0.9 * abs(r))


def _affine(*coefficients: float | Callable[..., float]) -> Operation:
    """Returns a transform by coefficients: numbers, or functions of r, w, h."""

    def apply(image: PIL.Image.Image, r: float) -> PIL.Image.Image:
        return image.transform(
            image.size,
            PIL.Image.Transform.AFFINE,
            [c(r, *image.size) if callable(c) else c for c in coefficients],
        )

    return apply


OPERATIONS = (
    lambda image, r: PIL.ImageOps.autocontrast(image),
    lambda image, r: PIL.ImageOps.equalize(image),
    lambda image, r: image,
    _enhance(PIL.ImageEnhance.Brightness),
    _enhance(PIL.ImageEnhance.Color),
    _enhance(PIL.ImageEnhance.Contrast),
    _enhance(PIL.ImageEnhance.Sharpness),
    lambda image, r: PIL.ImageOps.posterize(image, int(4 * abs(r)) + 4),
    lambda image, r: PIL.ImageOps.solarize(image, 256 - int(256 * abs(r))),
    lambda image, r: image.rotate(30 * r),
    _affine(1, lambda r, w, h: 0.3 * r, 0, 0, 1, 0),
    _affine(1, 0, 0, lambda r, w, h: 0.3 * r, 1, 0),
    _affine(1, 0, lambda r, w, h: 0.3 * r * w, 0, 1, 0),
    _affine(1, 0, 0, 0, 1, lambda r, w, h: 0.3 * r * h),
)


def _rand_augment(
    image: PIL.Image.Image, random: random_lib.Random
) -> PIL.Image.Image:
    """RandAugment(2, 10)."""
    for operation in random.choices(OPERATIONS, k=2):
        if random.random() < 0.5:
            r = random.randint(1, 9) / 10
            image = operation(image, random.choice((-r, r)))
    return image


def _cutout(
    image: PIL.Image.Image, random: random_lib.Random
) -> PIL.Image.Image:
    """Paints one grey square, clipped by the border."""
    width, height = image.size
    left = random.randrange(width) - CUTOUT // 2
    top = random.randrange(height) - CUTOUT // 2
    box = (left, top, left + CUTOUT, top + CUTOUT)
    image.paste((GREY, GREY, GREY), box)
    return image


def cifar(
    pixels: np.ndarray, random: random_lib.Random
) -> tuple[np.ndarray, np.ndarray]:
    """Makes both views of a small image: flip and crop, RandAugment, cutout.

    Args:
        pixels: uint8 [H, W, 3].
        random: Source of the random numbers.

    Returns:
        The weak and the strong view, uint8 [H, W, 3].
    """
    image = PIL.Image.fromarray(pixels)
    weak = _flip_crop(image, random)
    strong = _rand_augment(_flip_crop(image, random), random)
    return np.asarray(weak), np.asarray(_cutout(strong, random))


def _resized_crop(
    image: PIL.Image.Image, random: random_lib.Random
) -> PIL.Image.Image:
    """A random part of at least a fifth, resized; mirrored by chance."""
    width, height = image.size
    box = (0, 0, width, height)
    for _ in range(10):
        area = width * height * random.uniform(0.2, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if w <= width and h <= height:
            left = random.randint(0, width - w)
            top = random.randint(0, height - h)
            box = (left, top, left + w, top + h)
            break
    image = image.crop(box).resize((SIDE, SIDE), PIL.Image.Resampling.BILINEAR)
    if random.random() < 0.5:
        image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def _hue(image: PIL.Image.Image, shift: float) -> PIL.Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    moved = np.asarray(hue) + np.uint8(int(shift * 255) % 256)
    bands = (PIL.Image.fromarray(moved), saturation, value)
    return PIL.Image.merge("HSV", bands).convert("RGB")


def _jitter(
    image: PIL.Image.Image, random: random_lib.Random
) -> PIL.Image.Image:
    """Changes brightness, contrast, saturation and hue, in random order."""
    enhancers = [
        PIL.ImageEnhance.Brightness,
        PIL.ImageEnhance.Contrast,
        PIL.ImageEnhance.Color,
        None,
    ]
    random.shuffle(enhancers)
    for enhancer in enhancers:
        if enhancer is None:
            image = _hue(image, random.uniform(-0.1, 0.1))
        else:
            image = enhancer(image).enhance(random.uniform(0.6, 1.4))
    return image


def imagenet(
    encoded: bytes, random: random_lib.Random
) -> tuple[np.ndarray, np.ndarray]:
    """Makes both views of a photograph: crop, flip, MoCo v2's colors and blur.

    Args:
        encoded: A JPEG.
        random: Source of the random numbers.

    Returns:
        The weak and the strong view, uint8 [224, 224, 3].
    """
    image = PIL.Image.open(io.BytesIO(encoded)).convert("RGB")
    weak = _resized_crop(image, random)
    strong = _resized_crop(image, random)
    if random.random() < 0.8:
        strong = _jitter(strong, random)
    if random.random() < 0.2:
        strong = strong.convert("L").convert("RGB")
    if random.random() < 0.5:
        sigma = random.uniform(0.1, 2.0)
        strong = strong.filter(PIL.ImageFilter.GaussianBlur(sigma))
    return np.asarray(weak), np.asarray(strong)
