"""What a process reads while it trains, and what it is shown of its steps.

    python -m tests.recording FOLDER [--copied] FLAGS

trains as simmatch_tf.train does, and writes FOLDER/worker_INDEX. With --copied
the input goes the way of devices that batches are copied to, such as GPUs.
"""

import contextlib
import pathlib
import pickle
import runpy
import sys
from collections.abc import Iterator

from simmatch_tf.distributed import cluster, strategies
from simmatch_tf.monitoring import tensorboard_writer


@contextlib.contextmanager
def reads(*, copied: bool = False) -> Iterator[dict[str, list]]:
    """Records every element that `strategies.iterate` gives.

    Args:
        copied: Whether devices count as such that batches are copied to.

    Yields:
        Of each batch, one replica's share after the other: "training" (a
        dict), "evaluation" (images); and "rows", "means" of the steps that
        pictures were drawn of.
    """
    record = {"training": [], "evaluation": [], "rows": [], "means": []}
    iterate, are_copied_to = strategies.iterate, strategies._are_copied_to
    picture = tensorboard_writer.TensorBoardWriter.picture

    def recorded(strategy, dataset):
        for element in iterate(strategy, dataset):
            training = isinstance(element, dict)
            if training:
                columns = {
                    name: strategy.experimental_local_results(value)
                    for name, value in element.items()
                }
                count = len(columns["slots"])
                shares = [
                    {name: x[i].numpy() for name, x in columns.items()}
                    for i in range(count)
                ]
            else:
                shares = strategy.experimental_local_results(element)
                shares = [share.numpy() for share in shares]
            record["training" if training else "evaluation"].append(shares)
            yield element

    def drawn(self, step, seen):
        record["rows"].append(seen.rows)
        record["means"].append(seen.means)
        picture(self, step, seen)

    strategies.iterate = recorded
    tensorboard_writer.TensorBoardWriter.picture = drawn
    if copied:
        strategies._are_copied_to = lambda devices: True
    try:
        yield record
    finally:
        strategies.iterate = iterate
        strategies._are_copied_to = are_copied_to
        tensorboard_writer.TensorBoardWriter.picture = picture


def main() -> None:
    """Trains by the command line."""
    folder, *words = sys.argv[1:]
    worker = cluster.read()
    path = pathlib.Path(folder) / f"worker_{worker.index if worker else 0}"
    copied = words[0] == "--copied"
    sys.argv[1:] = words[copied:]
    with reads(copied=copied) as record:
        try:
            runpy.run_module("simmatch_tf.train", run_name="__main__")
        finally:
            path.write_bytes(pickle.dumps(record))


if __name__ == "__main__":
    main()
