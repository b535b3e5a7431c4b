"""What a run came to, from its state after the last step."""

import importlib.metadata
import math

import numpy as np

from simmatch_tf import config as config_lib
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.data import splits
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.training import results


def collect(
    config: config_lib.Config,
    algorithm: algorithm_lib.Algorithm,
    accuracy: dict[str, dict[str, float]],
    source: source_lib.Source,
    split: splits.Split,
    scored: tuple[str, source_lib.Images | source_lib.Encoded, np.ndarray],
) -> results.Result:
    """Collects what stands in results.json.

    Args:
        config: The run's, with its durations in steps.
        algorithm: Its state.
        accuracy: Network → "top1", "top5" after the last step.
        source: The dataset.
        split: Its labeled images.
        scored: What was scored; see `inputs.scored_images`.
    """
    record = algorithm.record
    chosen_on = "validation" if len(split.validation) else "test"
    scored_on, _, places = scored
    networks = {}
    for name, last in accuracy.items():
        _, best, step = record.best[name].numpy().tolist()
        networks[name] = {
            "last": {**last, "step": config.steps},
            "best": {
                # Kept as float32; the number of images gives the rest.
                "top1": round(best * len(places)) / len(places),
                "step": int(step),
                "chosen_on": chosen_on,
            },
        }
    last = networks[algorithm.evaluated_weights]["last"]
    loss = float(record.loss.numpy())
    return results.Result(
        top1=last["top1"],
        top5=last["top5"],
        loss=None if math.isnan(loss) else loss,
        steps=config.steps,
        weights_of_record=algorithm.evaluated_weights,
        **networks,
        algorithm=config.algorithm,
        dataset=source.name,
        class_names=list(source.class_names),
        labels=len(split.labeled),
        validation_labels=len(split.validation),
        unlabeled=len(split.unlabeled),
        scored_on=scored_on,
        test_images=len(places),
        seed=config.seed,
        split_seed=config.split_seed,
        versions={
            name: importlib.metadata.version(name)
            for name in ("tensorflow", "keras", "numpy")
        },
    )
