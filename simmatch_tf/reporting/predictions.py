"""The page of `predict --html`, and its table. Imports no TensorFlow."""

import base64
import pathlib
from collections.abc import Mapping
from typing import Any

import jinja2

from simmatch_tf import io
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.reporting import tables

_MANY = 20  # classes beyond which the terminal shows the largest only


def summary(review: Any, output: pathlib.Path, note: str = "") -> str:
    """The table that ends `predict`.

    Args:
        review: A `serving.prediction_file.Summary`.
        output: The file that was written.
        note: What is known of the confidences beyond their values.
    """
    found = sorted(
        (item for item in review.per_class.items() if item[1]),
        key=lambda item: -item[1],
    )
    rows = [["class", "images", "share"]]
    read = max(1, review.images - review.unreadable)
    for name, count in found[:_MANY]:
        rows.append([str(name), f"{count:,}", f"{count / read:.1%}"])
    if len(found) > _MANY:
        count = sum(item[1] for item in found[_MANY:])
        rows.append(
            [
                f"{len(found) - _MANY} others",
                f"{count:,}",
                f"{count / read:.1%}",
            ]
        )
    text = tables.table(rows) + "\n"
    for name, reason in review.reasons:
        text += f"\nunreadable: {io.one_line(name)}: {reason}"
    if review.unreadable > len(review.reasons):
        text += f"\n… and {review.unreadable - len(review.reasons)} more"
    if review.unreadable:
        text += "\n"
    return (
        f"{text}\n{review.images:,} images, {review.unreadable:,} of them "
        f"unreadable.\n{note and note + chr(10)}Written to {output}."
    )


def page(
    review: Any,
    model: str,
    pictures: Mapping[int, bytes],
    neighbors: Mapping[int, bytes],
    note: str = "",
) -> str:
    """A page that needs no other file, and no network.

    Args:
        review: A `serving.prediction_file.Summary`.
        model: What predicted, as a line.
        pictures: Place of an image → its JPEG.
        neighbors: Memory slot → the labeled image's JPEG.
        note: See `summary`.

    Returns:
        HTML. Every name in it comes from data, so all are escaped.
    """
    sections: dict[str, list[dict[str, Any]]] = {}
    for place, row in review.least:
        sections.setdefault(row["class"], []).append(
            {
                "row": row,
                "picture": place in pictures and data(pictures[place]),
            }
        )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("simmatch_tf.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("predictions.html").render(
        review=review,
        model=model,
        note=note,
        shown=len(review.least),
        explained=any("neighbors" in row for _, row in review.least),
        # Each once, however many predictions rest on it.
        neighbors={slot: data(found) for slot, found in neighbors.items()},
        # The class with the least certain image first.
        sections=list(sections.items()),
    )


def write(path: pathlib.Path, text: str, flag: str = "html") -> None:
    """Writes a page, whole or not at all.

    Args:
        path: Of the page.
        text: HTML.
        flag: That named it.

    Raises:
        InputError: It cannot be written.
    """
    aside = path.with_name(path.name + ".tmp")
    try:
        # Names of files need not be valid UTF-8.
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise InputError(
            f"--{flag}={path}: cannot be written ({error.strerror})"
        ) from None


def data(picture: bytes, kind: str = "jpeg") -> str:
    """A picture as an address that holds it."""
    return f"data:image/{kind};base64," + base64.b64encode(picture).decode()
