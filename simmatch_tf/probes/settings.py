"""Settings of `transfer`. Nothing here imports TensorFlow."""

import dataclasses

from simmatch_tf.flags.errors import InputError

# Values of --weights, for a library's architecture, that are no file.
PUBLISHED, NEW = "imagenet", "random"


@dataclasses.dataclass(frozen=True)
class Named:
    """A model of --model.

    Attributes:
        name: Name of its row in the table.
        model: A folder, or LIBRARY:NAME.
        library: "keras_applications", "keras_cv" or None.
    """

    name: str
    model: str
    library: str | None


@dataclasses.dataclass(frozen=True)
class Settings:
    """How models are measured; each field is a flag of `transfer`.

    Attributes:
        protocol: "linear", "finetune" or "knn".
        output: Folder of the table and of finished measurements.
        max_iter: Iterations of L-BFGS for each regularization strength.
        tol: Largest slope of the mean loss at which L-BFGS stops.
        neighbors: Number of nearest neighbors that vote.
        temperature: Temperature of their votes, exp(cosine / temperature).
        steps: Steps of each fine-tuning run.
        rates: Peak learning rates of the fine-tuning grid; see `numbers`.
        decays: Weight decays of the grid; each is divided by the rate of its
            run, so that a step shrinks the weights by the same share.
        crop_area: Smallest share of the image in a random crop.
        batch_size: Images of a batch.
        seed: Random seed of new weights, and of fine-tuning.
        cache_dir: Folder that keeps features; by default, that of
            `features.default_folder`.
        parallel_calls: Batches of images that are prepared at once.
        progress: Whether progress bars are shown.
    """

    protocol: str
    output: str
    max_iter: int
    tol: float
    neighbors: int
    temperature: float
    steps: int
    rates: str
    decays: str
    crop_area: float
    batch_size: int
    seed: int
    cache_dir: str | None
    parallel_calls: int
    progress: bool


def numbers(name: str, value: str) -> tuple[float, ...]:
    """Returns the sorted numbers of --rates or --decays.

    Args:
        name: "rates", whose numbers are above 0, or "decays", at least 0.
        value: Numbers separated by commas.

    Raises:
        InputError: A word is no number in that range, or is repeated.
    """
    least = "above 0" if name == "rates" else "at least 0"
    try:
        parsed = tuple(float(word) for word in value.split(","))
        right = all(
            0 <= x <= 100 and (x > 0 or name == "decays") for x in parsed
        )
        # Names of the runs' folders, which must differ.
        right &= len({f"{x:g}" for x in parsed}) == len(parsed)
    except ValueError:
        right = False
    if not right:
        raise InputError(
            f"--{name}={value}: must be numbers {least} and at most 100, "
            "each once, with commas between"
        )
    return tuple(sorted(parsed))
