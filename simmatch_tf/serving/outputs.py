"""The file of predictions: one row an image, kept through interruptions.

While it is made, rows stand as JSON lines in OUTPUT.partial, behind a line that
says what they are of. Nothing here imports TensorFlow.
"""

import contextlib
import csv
import fcntl
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

from simmatch_tf.flags.commandline import InputError

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
_AT_ONCE = 4096  # rows of a Parquet group


def partial(output: pathlib.Path) -> pathlib.Path:
    """Where the rows of a file wait until it is complete."""
    return output.with_name(output.name + ".partial")


def check_free(output: pathlib.Path, *, overwrite: bool) -> None:
    """Checks that a file may be written.

    Raises:
        InputError: It is there already.
    """
    # Where rows wait, the file beside them was meant to be replaced.
    if output.exists() and not (overwrite or partial(output).exists()):
        raise InputError(
            f"--output={output}: is there already; name another file, or "
            "--overwrite"
        )


class Rows:
    """Rows on their way into a file.

    Attributes:
        done: Rows that are there already.
    """

    def __init__(
        self, output: pathlib.Path, about: dict[str, Any], *, overwrite: bool
    ) -> None:
        """Begins a file, or goes on with it.

        Args:
            output: The file, ending in .csv, .jsonl or .parquet.
            about: What the rows are of: model, images. Another's are refused.
            overwrite: Begin anew, and replace the file in the end. If that is
                interrupted, it goes on without this.

        Raises:
            InputError: It is there already, or begun otherwise, or cannot be
                written, or another process writes it.
        """
        check_free(output, overwrite=overwrite)
        self.output, self.partial = output, partial(output)
        with self._explained():
            self._file = open(self.partial, "a+b")  # noqa: SIM115
            try:
                self.done = self._begin(about, overwrite)
            except BaseException:
                self._file.close()
                raise

    def _begin(self, about: dict[str, Any], overwrite: bool) -> int:
        """Locks the file; the number of rows that are in it."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{self.partial}: another process writes it"
            ) from None
        if overwrite:
            self._file.truncate(0)
        return self._go_on(about)

    def _go_on(self, about: dict[str, Any]) -> int:
        """Reads what is there, up to the last whole line."""
        self._file.seek(0)
        first = self._file.readline()
        if not first.endswith(b"\n"):
            self._file.truncate(0)
            self._write_line(about)
            return 0
        try:
            there = json.loads(first)
        except ValueError:
            there = None
        if there != about:
            raise InputError(
                f"{self.partial}: was begun with another model, other images "
                "or other flags; --overwrite begins anew"
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
        """Adds rows; they are on disk when it returns.

        Raises:
            InputError: They cannot be written.
        """
        with self._explained():
            for row in rows:
                self._write_line(row)
            self._file.flush()

    def finish(self) -> None:
        """Makes the file of the rows.

        Raises:
            InputError: It cannot be written.
        """
        aside = self.output.with_name(self.output.name + ".tmp")
        write = _WRITERS[self.output.suffix.lower()]
        with self._explained():
            try:
                write(aside, read(self.partial, skip=1))
                aside.replace(self.output)
            finally:
                aside.unlink(missing_ok=True)
            self.partial.unlink()

    def __enter__(self) -> Self:
        """For a with-block, which closes it."""
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves what is there for the next time."""
        with contextlib.suppress(OSError):
            self._file.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"--output={self.output}: cannot be written "
                f"({error.strerror}); rows that are written stay: put it right "
                "and start again"
            ) from None


def read(path: pathlib.Path, *, skip: int = 0) -> Iterator[Row]:
    """The rows of a file of JSON lines, behind the first `skip` lines."""
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            if number >= skip:
                yield json.loads(line)


def _write_jsonl(path: pathlib.Path, rows: Iterator[Row]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_csv(path: pathlib.Path, rows: Iterator[Row]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = None
        for row in rows:
            flat = {k: v for k, v in row.items() if k != "neighbors"}
            for number, found in enumerate(row.get("neighbors", ()), 1):
                for key in _NEIGHBOR:
                    flat[f"neighbor_{number}_{key}"] = found[key]
            if writer is None:
                writer = csv.DictWriter(file, list(flat), lineterminator="\n")
                writer.writeheader()
                # The usual one leaves a carriage return as it is.
                quoting = csv.DictWriter(
                    file, list(flat), lineterminator="\n", quoting=csv.QUOTE_ALL
                )
            odd = any("\r" in v for v in flat.values() if isinstance(v, str))
            (quoting if odd else writer).writerow(flat)


def _write_parquet(path: pathlib.Path, rows: Iterator[Row]) -> None:
    import pyarrow
    from pyarrow import parquet

    kinds = {
        str: pyarrow.string(),
        int: pyarrow.int64(),
        float: pyarrow.float64(),
    }

    def fields(columns: dict[str, type]) -> list[tuple[str, Any]]:
        return [(name, kinds[kind]) for name, kind in columns.items()]

    writer, group = None, []
    rows = iter(rows)
    with contextlib.ExitStack() as stack:
        while group := [r for _, r in zip(range(_AT_ONCE), rows, strict=False)]:
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


def unreadable(name: str, reason: str, neighbors: int | None) -> Row:
    """The row of an image that cannot be read.

    Args:
        name: Of the file.
        reason: Why not.
        neighbors: How many a row has; None: rows are not explained.
    """
    row = {"file": name, **dict.fromkeys(list(_COLUMNS)[1:])}
    if neighbors is not None:
        row |= dict.fromkeys(_EXPLAINED)
        row["neighbors"] = [dict.fromkeys(_NEIGHBOR)] * neighbors
    return {**row, "error": reason}
