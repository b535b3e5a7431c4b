"""HTML pages from the templates, and the page of `predict --html`.

A page needs no other file and no network: pictures are part of it. Nothing
here imports TensorFlow.
"""

import base64
from collections.abc import Mapping
from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """Fills in a template of the folder templates/.

    Every text in `values` may come from data, so all of them are escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("simmatch_tf.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def data_uri(picture: bytes, kind: str = "jpeg") -> str:
    """Returns a picture as an address that holds it."""
    return f"data:image/{kind};base64," + base64.b64encode(picture).decode()


def predictions(
    review: Any,
    model: str,
    pictures: Mapping[int, bytes],
    neighbors: Mapping[int, bytes],
    note: str = "",
) -> str:
    """Returns the page of `predict`: the least certain images by class.

    Args:
        review: A `serving.prediction_file.Summary`.
        model: What predicted, as a line of text.
        pictures: Index of an image → its JPEG.
        neighbors: Slot of the memory bank → the labeled image's JPEG.
        note: What is known of the confidences beyond their values.

    Returns:
        HTML.
    """
    sections: dict[str, list[dict[str, Any]]] = {}
    for index, row in review.least:
        picture = pictures.get(index)
        sections.setdefault(row["class"], []).append(
            {"row": row, "picture": picture and data_uri(picture)}
        )
    return render(
        "predictions.html",
        review=review,
        model=model,
        note=note,
        shown=len(review.least),
        explained=any("neighbors" in row for _, row in review.least),
        # Each once, however many predictions show it.
        neighbors={slot: data_uri(jpeg) for slot, jpeg in neighbors.items()},
        # The class with the least certain image first.
        sections=list(sections.items()),
    )
