"""SimMatch on TensorFlow and Keras: image classifiers from few labels.

    import simmatch_tf

    config = simmatch_tf.Config.from_flagfile("configs/digits_40.cfg")
    result = simmatch_tf.fit(config)
    model = simmatch_tf.load(config.workdir)
    print(simmatch_tf.predict(config.workdir, "photos"))

Importing this is light: TensorFlow is imported when a name needs it.
"""

import importlib
import os

from simmatch_tf import lazy, preflight

if not os.environ.get("KERAS_BACKEND"):  # empty, ~/.keras/keras.json decides
    os.environ["KERAS_BACKEND"] = "tensorflow"
# TensorFlow's own start-up notices drown the progress bar.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Registers the layers in model.keras, for `keras.saving.load_model`.
lazy.import_after("keras", "simmatch_tf.networks.network")

__version__ = "0.1.0"

_PUBLIC = {
    "Algorithm": "simmatch_tf.algorithms.algorithm",
    "Config": "simmatch_tf.config",
    "Images": "simmatch_tf.data.sources.source",
    "InputError": "simmatch_tf.flags.errors",
    "Interrupted": "simmatch_tf.signals",
    "Result": "simmatch_tf.training.results",
    "Source": "simmatch_tf.data.sources.source",
    "fit": "simmatch_tf.training.loop",
    "load": "simmatch_tf.training.state",
    "predict": "simmatch_tf.predict",
}
# Those that need no TensorFlow, and those of what is trained.
_LIGHT = ("Config", "InputError", "Interrupted", "Result", "predict")
_SERVING = ("load",)
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _LIGHT:
        trains = name not in _SERVING
        preflight.load_tensorflow(fast=trains)
    value = importlib.import_module(_PUBLIC[name])
    if name != "predict":  # the command's module, which can be called
        value = getattr(value, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
