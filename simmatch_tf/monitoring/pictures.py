"""Pictures of a run for TensorBoard, drawn by Pillow in milliseconds.

Every function returns uint8 [height, width, 3].
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

_INK, _SOFT, _PAPER = (32, 32, 32), (150, 150, 150), (255, 255, 255)
_BLUE, _ORANGE, _GREEN = (0, 114, 178), (230, 159, 0), (0, 158, 115)
_WRONG = (213, 94, 0)
# One bar each for p^w, q^agg and p̂; the font has no glyph for the last.
_BARS = (("p_w", "p^w", _BLUE), ("q_agg", "q^agg", _ORANGE))
_BARS += (("p_hat", "p^ (taught)", _GREEN),)

_SIDE, _ROW, _GAP = 72, 88, 10
_LISTED = 5  # classes shown for an image
_COUNTS = 25  # a confusion matrix of more classes shows no numbers


@dataclasses.dataclass(frozen=True)
class Unlabeled:
    """An unlabeled image of a step, and its pseudo-label.

    Attributes:
        views: Name of a view → uint8 [H, W, C].
        probabilities: "p_w", "p_hat" and, with a memory, "q_agg" → [L].
        truth: Its class; -1 if unknown.
        counts: Whether its pseudo-label passes a threshold.
    """

    views: dict[str, np.ndarray]
    probabilities: dict[str, np.ndarray]
    truth: int
    counts: bool


@dataclasses.dataclass(frozen=True)
class Neighbor:
    """A labeled image that is similar to an unlabeled one.

    Attributes:
        image: uint8 [H, W, C].
        label: Its class.
        cosine: Cosine similarity of the two embeddings, z^w · Q_f[k].
    """

    image: np.ndarray
    label: int
    cosine: float


class _Page:
    """An image to draw on."""

    def __init__(self, width: int, height: int) -> None:
        self.image = PIL.Image.new("RGB", (width, height), _PAPER)
        self.draw = PIL.ImageDraw.Draw(self.image)
        self.font = PIL.ImageFont.load_default(12)

    def text(
        self,
        place: tuple[int, int],
        text: str,
        colour: tuple[int, int, int] = _INK,
        width: int = 10_000,
        anchor: str = "la",
    ) -> None:
        """Writes a line; text wider than `width` is cut."""
        text = "".join(c if c.isprintable() else "?" for c in text)
        while len(text) > 1 and self.font.getlength(text) > width:
            text = text[:-2] + "…"
        self.draw.text(place, text, colour, self.font, anchor=anchor)

    def put(
        self,
        place: tuple[int, int],
        pixels: np.ndarray,
        frame: tuple[int, int, int] | None = None,
    ) -> None:
        """Draws an image into a square; small ones keep sharp pixels."""
        if pixels.shape[-1] == 1:
            pixels = pixels[..., 0]
        image = PIL.Image.fromarray(pixels).convert("RGB")
        longest = max(image.size)
        size = [max(1, round(_SIDE * side / longest)) for side in image.size]
        filtered = PIL.Image.Resampling.BILINEAR
        if longest < _SIDE:
            filtered = PIL.Image.Resampling.NEAREST
        self.image.paste(image.resize(size, filtered), place)
        if frame is not None:
            x, y = place
            box = (x - 3, y - 3, x + size[0] + 2, y + size[1] + 2)
            self.draw.rectangle(box, outline=frame, width=2)

    def pixels(self) -> np.ndarray:
        """Returns the picture."""
        return np.asarray(self.image)


def views(
    images: Sequence[Unlabeled], class_names: Sequence[str]
) -> np.ndarray:
    """Draws views, and the class probabilities they gave.

    Args:
        images: At least one; each gets a row.
        class_names: Names of the L classes.
    """
    bars = [b for b in _BARS if b[0] in images[0].probabilities]
    left = len(images[0].views) * (_SIDE + _GAP) + 2 * _GAP
    page = _Page(left + 420, 34 + _ROW * len(images))
    for column, name in enumerate(images[0].views):
        page.text((_GAP + (_SIDE + _GAP) * column, 8), name.replace("_", " "))
    x = left + 100
    for _, name, colour in bars:
        page.draw.rectangle((x, 10, x + 10, 20), fill=colour)
        page.text((x + 15, 8), name)
        x += 90
    for row, image in enumerate(images):
        y = 34 + _ROW * row
        for column, pixels in enumerate(image.views.values()):
            # Of a view that is trained on the pseudo-label.
            frame = _GREEN if image.counts and column else None
            page.put((_GAP + (_SIDE + _GAP) * column, y), pixels, frame)
        _bars(page, left, y, image, bars, class_names)
    return page.pixels()


def _bars(
    page: _Page,
    x: int,
    y: int,
    image: Unlabeled,
    bars: Sequence[tuple[str, str, tuple[int, int, int]]],
    class_names: Sequence[str],
) -> None:
    """Draws the most likely classes of an image, a bar a distribution."""
    largest = np.max([image.probabilities[b[0]] for b in bars], axis=0)
    listed = np.argsort(-largest, kind="stable")[:_LISTED]
    thick = 4 if len(bars) == 3 else 6
    for place, label in enumerate(listed):
        top = y + 15 * place
        colour = _GREEN if label == image.truth else _INK
        name = str(class_names[label])
        page.text((x + 94, top), name, colour, width=92, anchor="ra")
        for number, (key, _, shade) in enumerate(bars):
            length = round(200 * float(image.probabilities[key][label]))
            first = top + 1 + thick * number
            box = (x + 100, first, x + 100 + length, first + thick - 2)
            page.draw.rectangle(box, fill=shade)
    best = int(np.argmax(image.probabilities["p_hat"]))
    share = f"{image.probabilities['p_hat'][best]:.2f}"
    wrong = image.truth >= 0 and image.truth != best
    page.text((x + 415, y), share, _WRONG if wrong else _INK, anchor="ra")
    if wrong:
        name = f"is {class_names[image.truth]}"
        page.text((x + 415, y + 15), name, _WRONG, 110, anchor="ra")


def neighbors(
    images: Sequence[Unlabeled],
    nearest: Sequence[Sequence[Neighbor]],
    class_names: Sequence[str],
) -> np.ndarray:
    """Draws unlabeled images and the most similar labeled ones.

    Args:
        images: At least one; each gets a row.
        nearest: The neighbors of each, the nearest first.
        class_names: Names of the L classes.
    """
    many = max(map(len, nearest))
    cell, tall = _SIDE + 2 * _GAP, _SIDE + 46
    page = _Page(cell * (1 + many) + 3 * _GAP, 34 + tall * len(images))
    page.text((_GAP, 8), "unlabeled")
    page.text(
        (cell + 3 * _GAP, 8),
        "labeled, the nearest first; framed: another class",
    )
    for row, (image, others) in enumerate(zip(images, nearest, strict=True)):
        y = 34 + tall * row
        best = int(np.argmax(image.probabilities["p_hat"]))
        page.put((_GAP, y), next(iter(image.views.values())))
        name = str(class_names[best])
        wrong = image.truth >= 0 and image.truth != best
        page.text((_GAP, y + _SIDE + 4), name, width=_SIDE + _GAP)
        if wrong:
            name = f"is {class_names[image.truth]}"
            page.text((_GAP, y + _SIDE + 18), name, _WRONG, _SIDE + _GAP)
        for place, other in enumerate(others):
            x = cell * (1 + place) + 3 * _GAP
            frame = None if other.label == best else _ORANGE
            page.put((x, y), other.image, frame)
            name = str(class_names[other.label])
            page.text((x, y + _SIDE + 4), name, width=_SIDE + _GAP)
            page.text((x, y + _SIDE + 18), f"{other.cosine:.2f}", _SOFT)
    return page.pixels()


def confusion(
    counts: np.ndarray, class_names: Sequence[str], title: str
) -> np.ndarray:
    """Draws a confusion matrix: the shares of each row as shades.

    Args:
        counts: Number of images, [true class][predicted class].
        class_names: Names of the L classes.
        title: Text above it.
    """
    counts = np.asarray(counts)
    classes = len(counts)
    cell = 34 if classes <= _COUNTS else max(1, 900 // classes)
    left, top = (100, 60) if classes <= _COUNTS else (20, 60)
    page = _Page(left + cell * classes + 20, top + cell * classes + 20)
    page.text((_GAP, 8), title)
    page.text((_GAP, 24), "down: true class; across: predicted", _SOFT)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shade = 255 - share[..., None] * (255 - np.array(_BLUE))
    pixels = PIL.Image.fromarray(shade.astype(np.uint8))
    size = (cell * classes, cell * classes)
    page.image.paste(
        pixels.resize(size, PIL.Image.Resampling.NEAREST), (left, top)
    )
    if classes > _COUNTS:
        return page.pixels()
    for i in range(classes):
        middle = top + cell * i + cell // 2
        name = str(class_names[i])
        page.text((left - 6, middle), name, width=92, anchor="rm")
        place = (left + cell * i + cell // 2, top - 4)
        page.text(place, name, width=cell - 2, anchor="ms")
        for j in range(classes):
            if counts[i, j]:
                colour = _PAPER if share[i, j] > 0.5 else _INK
                page.text(
                    (left + cell * j + cell // 2, middle),
                    str(counts[i, j]), colour, cell, "mm",
                )  # fmt: skip
    return page.pixels()


def sprite(images: Sequence[np.ndarray], side: int) -> np.ndarray:
    """Draws thumbnails row by row in a square grid, as the projector reads it.

    Args:
        images: At least one, uint8 [H, W, C] each.
        side: Side of a thumbnail in pixels.
    """
    across = int(np.ceil(np.sqrt(len(images))))
    page = PIL.Image.new("RGB", (across * side, across * side), _PAPER)
    for place, pixels in enumerate(images):
        if pixels.shape[-1] == 1:
            pixels = pixels[..., 0]
        small = PIL.Image.fromarray(pixels).convert("RGB").resize((side, side))
        page.paste(small, (place % across * side, place // across * side))
    return np.asarray(page)
