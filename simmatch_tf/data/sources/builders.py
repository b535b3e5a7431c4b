"""Builders of TensorFlow Datasets (TFDS): made, and their data prepared."""

import re

from absl import logging

from simmatch_tf.flags.commandline import InputError


def make(name: str, tfds_dir: str | None):
    """A TFDS builder, whether or not its data are on disk."""
    import tensorflow_datasets as tfds  # slow to import, needed here only

    try:
        return tfds.builder(name, data_dir=tfds_dir)
    except (
        tfds.core.DatasetNotFoundError,
        AssertionError,  # an unknown version
        ValueError,  # an unknown configuration
    ) as error:
        text = str(error).strip().splitlines()[0].rpartition("}: ")[2]
        known = getattr(_builder_class(name), "BUILDER_CONFIGS", None) or []
        configs = ", ".join(c.name for c in known[:20])
        raise InputError(
            f"--dataset={name}: TFDS cannot make it ({text})"
            + (f"; its configurations: {configs}" if configs else "")
        ) from None


def prepare(name: str, tfds_dir: str | None, manual_dir: str | None):
    """A TFDS builder whose data are on disk."""
    import tensorflow_datasets as tfds

    builder = make(name, tfds_dir)
    if builder.data_path.exists():
        return builder
    logging.warning(
        "%s is not prepared in %s: TFDS downloads and prepares it, which may "
        "take long",
        name,
        builder.data_path,
    )
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    try:
        builder.download_and_prepare(download_config=config)
    except Exception as error:  # TFDS lets through whatever goes wrong
        raise InputError(_not_prepared(name, builder, error)) from error
    return builder


def _builder_class(name: str):
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_cls(re.split("[/:]", name)[0])
    except (tfds.core.DatasetNotFoundError, ValueError):
        return None


def _not_prepared(name: str, builder, error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = (
        f"--dataset={name}: is not prepared in {builder.data_path}, and TFDS "
        f"cannot prepare it: {lines[0][:300]}"
    )
    manual = getattr(builder, "MANUAL_DOWNLOAD_INSTRUCTIONS", None)
    if manual:
        text += (
            "\nIt wants archives that you place in --tfds_manual_dir: "
            + " ".join(manual.split())
        )
    return text
