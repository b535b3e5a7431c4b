"""One export and one folder of images for all tests of serving."""

import numpy as np
import pytest

import simmatch_tf
from simmatch_tf.evaluation import metrics
from simmatch_tf.serving import exporting, loading
from tests.serving import helpers


@pytest.fixture(scope="session")
def exported(finished_run, tmp_path_factory):
    """The finished run's export, as written and loaded again."""
    output = tmp_path_factory.mktemp("exports") / "digits"
    written = exporting.write(finished_run[0], output)
    return written, loading.export(written.path)


@pytest.fixture(scope="session")
def model(finished_run):
    """The finished run's network."""
    return simmatch_tf.load(finished_run[0])


@pytest.fixture(scope="session")
def calibrated_softmax(finished_run):
    """Logits → confidences, by the temperature of the finished run."""

    def calibrated_softmax(logits, weights="ema"):
        calibration = getattr(finished_run[1], weights)["calibration"]
        return metrics.softmax(np.asarray(logits) / calibration["temperature"])

    return calibrated_softmax


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Forty digits as files, and files that are no image."""
    root = tmp_path_factory.mktemp("photos")
    (root / "sub").mkdir()
    (root / ".hidden").mkdir()
    for number in range(40):
        folder = "sub" if number % 3 == 0 else "."
        path = root / folder / f"{number:02}.png"
        path.write_bytes(helpers.png(helpers.TEST.images[number]))
    (root / ".hidden" / "x.png").write_bytes(
        helpers.png(helpers.TEST.images[0])
    )
    (root / "notes.txt").write_text("no image")
    (root / "05 <b>&\"'.png").write_bytes(helpers.png(helpers.TEST.images[5]))
    (root / "cut.png").write_bytes(helpers.png(helpers.TEST.images[1])[:60])
    (root / "zz_empty.jpg").touch()
    return root
