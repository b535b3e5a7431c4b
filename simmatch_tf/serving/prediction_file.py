"""The file that `predict` writes: one row an image, kept on interruption.

While images are classified, their rows are appended as JSON lines to
OUTPUT.partial, whose first line says which model and images they belong to. The
output itself is written from these lines at the end. Nothing here imports
TensorFlow.
"""

import contextlib
import csv
import dataclasses
import heapq
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np

from simmatch_tf import io
from simmatch_tf.flags.errors import InputError

Row = dict[str, Any]
_COLUMNS = {
    "file": str,
    "class": str,
    "confidence": float,
    "second_class": str,
    "second_confidence": float,
}
_EXPLAINED = {"propagated_class": str, "propagated_confidence": float}
_NEIGHBOR = {
    "slot": int,
    "id": str,
    "class": str,
    "similarity": float,
    "weight": float,
}
_PARQUET_ROWS = 4096  # rows in a Parquet row group
# Parts of [0, 1] in the histogram of confidences.
BINS = 10
_LISTED_REASONS = 10


def rounded(value: float) -> float:
    """Rounds a number to the six digits that are meaningful."""
    return float(f"{value:.6g}")


def likeliest(p: np.ndarray, class_names: Sequence[str]) -> Row:
    """Returns the columns for the two most probable classes of an image.

    Args:
        p: Probabilities [L].
        class_names: L names.
    """
    first, second = np.argsort(-p, kind="stable")[:2]
    return {
        "class": class_names[first],
        "confidence": rounded(p[first]),
        "second_class": class_names[second],
        "second_confidence": rounded(p[second]),
    }


def unreadable(name: str, reason: str, neighbors: int | None) -> Row:
    """Returns the row of an image that cannot be read.

    Args:
        name: Name of the file.
        reason: Why it cannot be read.
        neighbors: Number of neighbors in a row; None: rows have no
            explanation.
    """
    row = {"file": name, **dict.fromkeys(list(_COLUMNS)[1:])}
    if neighbors is not None:
        row |= dict.fromkeys(_EXPLAINED)
        row["neighbors"] = [dict.fromkeys(_NEIGHBOR)] * neighbors
    return {**row, "error": reason}


def partial_path(output: pathlib.Path) -> pathlib.Path:
    """Returns the path where rows are kept until the output is complete."""
    return output.with_name(output.name + ".partial")


class PredictionFile:
    """Writes rows of predictions, and continues after an interruption.

    Attributes:
        output: The file to write in the end.
        partial: The file that rows are appended to until then.
        done: Number of rows that an interrupted call has already written.
    """

    def __init__(
        self,
        output: pathlib.Path,
        identity: dict[str, Any],
        *,
        overwrite: bool,
    ) -> None:
        """Starts a file, or continues one.

        Args:
            output: The file, ending in .csv, .jsonl or .parquet.
            identity: What the rows belong to: model and images. Rows of
                another identity are not continued.
            overwrite: Start from the beginning, and replace an output that
                exists. After an interruption the call continues without it.

        Raises:
            InputError: The output has rows of another identity, cannot be
                written, or is being written by another process.
        """
        self.output, self.partial = output, partial_path(output)
        with self._explain_errors():
            self._file = open(self.partial, "a+b")  # noqa: SIM115
            try:
                if not io.lock(self._file):
                    raise InputError(
                        f"{self.partial}: is being written by another process"
                    )
                if overwrite:
                    self._file.truncate(0)
                self.done = self._continue(identity)
            except BaseException:
                self._file.close()
                raise

    def _continue(self, identity: dict[str, Any]) -> int:
        """Cuts an unfinished last line; returns the number of rows."""
        self._file.seek(0)
        first = self._file.readline()
        if not first.endswith(b"\n"):
            self._file.truncate(0)
            self._write_line(identity)
            return 0
        try:
            previous = json.loads(first)
        except ValueError:
            previous = None
        if previous != identity:
            raise InputError(
                f"{self.partial}: was begun with another model, other images "
                "or other flags; give --overwrite to begin again"
            )
        count, end = 0, self._file.tell()
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            count, end = count + 1, end + len(line)
        self._file.truncate(end)
        return count

    def _write_line(self, content: Any) -> None:
        text = json.dumps(content, ensure_ascii=False)
        self._file.write(text.encode(errors="backslashreplace") + b"\n")

    def add(self, rows: Iterable[Row]) -> None:
        """Appends rows and flushes them to the file.

        Raises:
            InputError: They cannot be written.
        """
        with self._explain_errors():
            for row in rows:
                self._write_line(row)
            self._file.flush()

    def rows(self) -> Iterator[Row]:
        """Yields all rows written so far."""
        with open(self.partial, "rb") as file:
            next(file)  # the identity
            for line in file:
                yield json.loads(line)

    def finish(self) -> None:
        """Writes the output from the rows and removes the partial file.

        Raises:
            InputError: It cannot be written.
        """
        write = _WRITERS[self.output.suffix.lower()]
        with self._explain_errors():
            with io.replacing(self.output) as temporary:
                write(temporary, self.rows())
            self.partial.unlink()

    def __enter__(self) -> Self:
        """Enters a with-block that closes the file."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the file; its rows are kept for the next call."""
        with contextlib.suppress(OSError):
            self._file.close()

    @contextlib.contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"--output={self.output}: cannot be written "
                f"({error.strerror}); the rows written so far are kept: fix "
                "the cause and start the command again"
            ) from None


def _write_jsonl(path: pathlib.Path, rows: Iterator[Row]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_csv(path: pathlib.Path, rows: Iterator[Row]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = None
        for row in rows:
            flat = {k: v for k, v in row.items() if k != "neighbors"}
            for rank, neighbor in enumerate(row.get("neighbors", ()), 1):
                for key in _NEIGHBOR:
                    flat[f"neighbor_{rank}_{key}"] = neighbor[key]
            if writer is None:
                writer = csv.DictWriter(file, list(flat), lineterminator="\n")
                writer.writeheader()
            writer.writerow(flat)


def _write_parquet(path: pathlib.Path, rows: Iterator[Row]) -> None:
    import pyarrow
    from pyarrow import parquet

    types = {
        str: pyarrow.string(),
        int: pyarrow.int64(),
        float: pyarrow.float64(),
    }

    def fields(columns: dict[str, type]) -> list[tuple[str, Any]]:
        return [(name, types[kind]) for name, kind in columns.items()]

    writer = None
    with contextlib.ExitStack() as stack:
        while group := list(itertools.islice(rows, _PARQUET_ROWS)):
            if writer is None:
                columns = fields(_COLUMNS)
                if "neighbors" in group[0]:
                    neighbor = pyarrow.struct(fields(_NEIGHBOR))
                    columns += fields(_EXPLAINED)
                    columns.append(("neighbors", pyarrow.list_(neighbor)))
                columns.append(("error", pyarrow.string()))
                schema = pyarrow.schema(columns)
                writer = stack.enter_context(
                    parquet.ParquetWriter(path, schema)
                )
            writer.write_table(pyarrow.Table.from_pylist(group, schema))


_WRITERS: dict[str, Callable[[pathlib.Path, Iterator[Row]], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}


@dataclasses.dataclass(frozen=True)
class Summary:
    """Counts over all rows, and the images to look at first.

    Attributes:
        images: Number of rows.
        per_class: Class → number of its images, for all classes.
        confidences: Class → number of its images in each of the `BINS` parts
            of [0, 1] that a confidence may be in.
        unreadable: Number of images that could not be read.
        reasons: Name and reason of the first ten of those.
        least: Index and row of the images with the lowest confidence, the
            lowest first.
    """

    images: int
    per_class: dict[str, int]
    confidences: dict[str, list[int]]
    unreadable: int
    reasons: list[tuple[str, str]]
    least: list[tuple[int, Row]]


def summarize(
    rows: Iterable[Row], class_names: Sequence[str], most: int
) -> Summary:
    """Summarizes rows in one pass.

    Args:
        rows: All rows of a file.
        class_names: L names.
        most: Number of images with the lowest confidence to keep.
    """
    per_class = dict.fromkeys(class_names, 0)
    confidences = {name: [0] * BINS for name in class_names}
    failed, reasons = 0, []
    counter = itertools.count()

    def readable() -> Iterator[tuple[int, Row]]:
        nonlocal failed
        for row in rows:
            index = next(counter)
            if row["error"] is not None:
                failed += 1
                if len(reasons) < _LISTED_REASONS:
                    reasons.append((row["file"], row["error"]))
                continue
            per_class[row["class"]] += 1
            part = min(int(row["confidence"] * BINS), BINS - 1)
            confidences[row["class"]][part] += 1
            yield index, row

    # With most=0 all rows must still be read.
    least = heapq.nsmallest(
        max(most, 1), readable(), key=lambda item: item[1]["confidence"]
    )[:most]
    return Summary(
        images=next(counter),
        per_class=per_class,
        confidences=confidences,
        unreadable=failed,
        reasons=reasons,
        least=least,
    )
