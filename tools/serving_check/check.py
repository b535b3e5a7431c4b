"""Checks that other programs than ours load an export and agree with it.

    python tools/serving_check/check.py EXPORT --program=PROGRAM

`tools/serving_check.sh` compiles PROGRAM from serving_check.cc and calls this.
Every signature runs in that C++ program on several batch sizes, and on
malformed requests; `classify_bytes` also in `saved_model_cli` and as a REST
request. gRPC requests are checked against the signatures. All answers must
equal those of `loading.export`. Prints the largest difference of each case.
"""

import argparse
import dataclasses
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping

import numpy as np
import protocols
import tensorflow as tf

from simmatch_tf.flags.errors import InputError
from simmatch_tf.serving import classifier, loading, verification, versions

# A client may send an empty batch.
BATCHES = (0, 1, 7, 64)
# Size of a malformed batch; its second image is broken.
MALFORMED = 3
SEED = 0
# Text of the messages on an image that is one row short or of another type.
WRONG_SHAPE = "expected shape"
WRONG_DTYPE = "is provided"


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of a signature.

    Attributes:
        signature: Its name.
        inputs: Input name → tensor.
        error: What the message must contain, where the call must fail.
    """

    signature: str
    inputs: Mapping[str, tf.Tensor]
    error: str | None = None


def main() -> None:
    """Runs every check on the export that the command line names."""
    args = _arguments()
    try:
        exported = loading.export(version(args.export))
        shown = examples(exported, args.images, max(BATCHES))
        rows = check(exported, shown, args)
    except InputError as error:
        sys.exit(f"serving_check: {error}")
    width = max(len(name) for name in rows)
    print(f"{'case':{width}}  largest difference")
    for name, value in rows.items():
        print(f"{name:{width}}  {value}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", type=pathlib.Path)
    parser.add_argument("--program", type=pathlib.Path, required=True)
    parser.add_argument(
        "--images", type=pathlib.Path, help="Folder of images; else random."
    )
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0)
    return parser.parse_args()


def version(export: pathlib.Path) -> pathlib.Path:
    """Returns the version to check.

    Args:
        export: A version's folder, or a folder of versions: its latest.

    Raises:
        InputError: There is none.
    """
    if (export / "saved_model.pb").exists():
        return export
    numbers = versions.numbers(export) if export.is_dir() else []
    if not numbers:
        raise InputError(f"{export}: holds no SavedModel and no version of one")
    return export / str(max(numbers))


def examples(
    exported: loading.Export, folder: pathlib.Path | None, count: int
) -> verification.Examples:
    """Example images, as files and as the network takes them.

    Args:
        exported: Whose preprocessing is applied.
        folder: Of image files, which are repeated where they are too few;
            None: random ones, as PNG.
        count: How many.

    Raises:
        InputError: The folder has no files, or one is no readable image.
    """
    if folder is None:
        random = np.random.default_rng(SEED)
        shape = (count, *exported.preprocessing.image_shape)
        pixels = random.integers(0, 256, shape, np.uint8)
        encoded = [tf.io.encode_png(image).numpy() for image in pixels]
    else:
        files = sorted(path for path in folder.glob("*") if path.is_file())
        if not files:
            raise InputError(f"--images={folder}: holds no files")
        encoded = [files[i % len(files)].read_bytes() for i in range(count)]
    try:
        pixels = [
            exported.preprocessing.decode(tf.constant(data)).numpy()
            for data in encoded
        ]
    except tf.errors.InvalidArgumentError as error:
        raise InputError(f"--images={folder}: {error.message}") from None
    return verification.Examples(np.stack(pixels), encoded)


def check(
    exported: loading.Export,
    shown: verification.Examples,
    args: argparse.Namespace,
) -> dict[str, str]:
    """Runs all checks.

    Args:
        exported: The export.
        shown: As many images as the largest batch has.
        args: The command line's.

    Returns:
        Case → what is printed of it.

    Raises:
        InputError: Something differs.
    """
    cases = make_cases(exported, shown)
    few = verification.Examples(shown.pixels[:7], shown.encoded[:7])
    others: dict[str, Callable[..., str]] = {
        "saved_model_cli/classify_bytes": protocols.command_line,
        "REST/classify_bytes": protocols.rest,
        "gRPC, all signatures": protocols.grpc,
    }
    with tempfile.TemporaryDirectory() as folder:
        rows = in_program(exported, cases, args, pathlib.Path(folder))
    for name, other in others.items():
        rows[name] = other(exported, few)
    return rows


def make_cases(
    exported: loading.Export, shown: verification.Examples
) -> dict[str, Case]:
    """Calls of all signatures, and those that must fail.

    Args:
        exported: The export.
        shown: As many images as the largest batch has.

    Returns:
        Name → case.
    """
    cases = {}
    for name in exported.signatures:
        for count in BATCHES:
            part = verification.Examples(
                shown.pixels[:count], shown.encoded[:count]
            )
            inputs = (
                # An empty list would become a tensor of floats.
                {"image_bytes": tf.constant(part.encoded, tf.string, [count])}
                if name == "classify_bytes"
                else verification.inputs(name, part, exported.input_dtype)
            )
            cases[f"{name}-{count}"] = Case(name, inputs)
    encoded = list(shown.encoded[:MALFORMED])
    # Cut off behind a whole header, like an interrupted upload.
    encoded[1] = encoded[1][: len(encoded[1]) // 2]
    bytes_ = {"image_bytes": tf.constant(encoded)}
    images = shown.pixels[:MALFORMED].astype(exported.input_dtype)
    other = "float32" if exported.input_dtype == "uint8" else "uint8"
    served = classifier.SERVED
    return cases | {
        "malformed-item": Case("classify_bytes", bytes_, "image_bytes[1]"),
        "wrong-shape": Case(
            served, {"images": tf.constant(images[:, :-1])}, WRONG_SHAPE
        ),
        "wrong-dtype": Case(
            served, {"images": tf.constant(images.astype(other))}, WRONG_DTYPE
        ),
    }


def in_program(
    exported: loading.Export,
    cases: Mapping[str, Case],
    args: argparse.Namespace,
    folder: pathlib.Path,
) -> dict[str, str]:
    """Runs the cases in the C++ program and compares.

    Args:
        exported: The export.
        cases: By name.
        args: The command line's.
        folder: An empty one.

    Returns:
        "C++/CASE" → what is printed of it.

    Raises:
        InputError: The program failed, or its answers differ.
    """
    for name, case in cases.items():
        _write(case, folder / name)
    command = [str(args.program), str(exported.path), str(folder)]
    if args.threads and args.seconds:
        command += [f"--threads={args.threads}", f"--seconds={args.seconds}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.splitlines()[-5:]
        raise InputError("\n".join([f"exit code {done.returncode}", *lines]))
    print(done.stdout, end="")
    rows = {}
    for name, case in cases.items():
        # The program has checked the message already.
        rows[f"C++/{name}"] = "refused, as it must be"
        if case.error is None:
            wanted = exported.signatures[case.signature](**case.inputs)
            actual = _read(folder / name / "outputs")
            gap = protocols.compare(f"C++/{name}", wanted, actual)
            rows[f"C++/{name}"] = f"{gap:.1e}"
    return rows


def _write(case: Case, folder: pathlib.Path) -> None:
    (folder / "inputs").mkdir(parents=True)
    (folder / "signature").write_text(case.signature, "utf-8")
    for key, value in case.inputs.items():
        proto = tf.make_tensor_proto(value.numpy(), value.dtype)
        path = folder / "inputs" / f"{key}.pb"
        path.write_bytes(proto.SerializeToString())
    if case.error is not None:
        (folder / "error").write_text(case.error, "utf-8")


def _read(folder: pathlib.Path) -> dict[str, np.ndarray]:
    outputs = {}
    for path in folder.glob("*.pb"):
        proto = tf.make_tensor_proto(0)
        proto.ParseFromString(path.read_bytes())
        outputs[path.stem] = tf.make_ndarray(proto)
    return outputs


if __name__ == "__main__":
    main()
