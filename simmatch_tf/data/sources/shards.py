"""Record files of TFDS: whether each holds what the dataset promises.

A dataset's dataset_info.json says how many examples each file has. Counted is
by the frames around the records (length, checksum, record, checksum), which
needs no look into them. Nothing here imports TensorFlow.
"""

import hashlib
import os
import pathlib
import struct
from collections.abc import Sequence

from simmatch_tf.data import fingerprint as fingerprint_lib
from simmatch_tf.flags.errors import InputError

# Names of splits: of images without a class, and of all that are used.
UNLABELED = ("unlabelled", "unlabeled")
_SPLITS = ("train", *UNLABELED, "validation", "test")
_LENGTH = struct.Struct("<Q")
# Checksums: 4 bytes behind the length, 4 behind the record.
_HEADER = _LENGTH.size + 4
_FRAME = _HEADER + 4
_BUFFER = 1024 * 1024


def count(path: str) -> int:
    """Number of whole records in a file.

    Raises:
        InputError: It cannot be read.
    """
    try:
        size = os.stat(path).st_size
        records, place = 0, 0
        with open(path, "rb", buffering=_BUFFER) as file:
            while place + _FRAME <= size:
                (length,) = _LENGTH.unpack(file.read(_HEADER)[: _LENGTH.size])
                place += _FRAME + length
                records += place <= size
                file.seek(place)
        return records
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); "
            + advice(path)
        ) from None


def digest(path: str) -> str:
    """A digest of a file's records, in their order.

    TFDS writes the features of a record in any order, another in each process.
    So of each record it is one of its bytes in ascending order.

    Raises:
        InputError: It cannot be read.
    """
    import numpy as np

    found, place = hashlib.sha256(), 0
    try:
        content = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); "
            + advice(path)
        ) from None
    while place + _FRAME <= len(content):
        (length,) = _LENGTH.unpack_from(content, place)
        record = content[place + _HEADER : place + _HEADER + length]
        # "stable": of bytes that is a radix sort, 15 times as fast.
        found.update(np.sort(np.frombuffer(record, np.uint8), kind="stable"))
        place += _FRAME + length
    return found.hexdigest()


def check(files: Sequence[str], promised: Sequence[int]) -> None:
    """Checks files whose records were not read; none of gs:// and the like.

    Args:
        files: Paths.
        promised: Records that each must have.

    Raises:
        InputError: One cannot be read, or has others.
    """
    # Into a remote folder only TensorFlow can look.
    if not any("://" in path for path in files):
        check_counts(files, [count(path) for path in files], promised)


def check_counts(
    files: Sequence[str], counts: Sequence[int], promised: Sequence[int]
) -> None:
    """Checks the number of records in each file.

    Raises:
        InputError: One has others than the dataset promises.
    """
    wrong = [
        f"{path} holds {found} examples, but dataset_info.json beside it "
        f"promises {wanted}"
        for path, found, wanted in zip(files, counts, promised, strict=True)
        if found != wanted
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} other files like it)"
        raise InputError(
            f"{wrong[0]}{more * (len(wrong) > 1)}: it was not copied or "
            f"written to its end; {advice(files[0])}"
        )


def damaged(path: str) -> InputError:
    """The error for a file whose records do not have their checksums."""
    return InputError(
        f"{path}: is damaged: what it holds does not have its checksums; "
        + advice(path)
    )


def advice(path: str) -> str:
    """What to do about a file."""
    return (
        "copy it again, or remove "
        f"{pathlib.Path(path).parent}, and TFDS prepares it anew"
    )


def of_builder(builder, splits: Sequence[str]) -> dict[str, int]:
    """Record files of splits, in their order → examples that each must have."""
    found = {}
    for split in splits:
        info = builder.info.splits[split]
        counts = {
            os.fspath(file.filename): file.examples_in_shard
            for file in info.file_instructions
        }
        # An empty file is in no instruction.
        found |= {str(p): counts.get(str(p), 0) for p in info.filepaths}
    return found


def fingerprint(builder) -> fingerprint_lib.Fingerprint:
    """Its record files, named from the folder of the datasets on."""
    root = builder.data_path
    for _ in builder.info.full_name.split("/"):
        root = root.parent
    splits = [s for s in builder.info.splits if s in _SPLITS]
    return fingerprint_lib.of_files(
        {
            os.path.relpath(path, root): path
            for path in of_builder(builder, splits)
        }
    )
