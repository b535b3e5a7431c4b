"""A run from a library's weights, from its start to predictions."""

import json

import keras
import numpy as np
import PIL.Image
import pytest

import simmatch_tf
from simmatch_tf import export, predict, report
from simmatch_tf.training import loop
from tests import runs
from tests.distributed import test_strategies
from tests.training import test_loop

NAME = "MobileNetV3Small"
# What configs/folder_pretrained.cfg has, for a few steps on small images.
FLAGS = {
    "backbone": f"keras_applications:{NAME}",
    "image_size": 32,
    "classifier_init": "frozen_features",
    "learning_rate": 0.03,
    "backbone_rate_factor": 0.3,
    "labels_alone": 0.5,
    "steps": 4,
    "eval_every": 4,
    "checkpoint_every": 2,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """In the layout of the published file; random, as nothing is fetched."""
    keras.utils.set_random_seed(1)
    model = getattr(keras.applications, NAME)(include_top=False, weights=None)
    path = tmp_path_factory.mktemp("weights") / f"{NAME}.weights.h5"
    model.save_weights(path)
    return str(path)


@pytest.fixture(scope="module")
def trained(weights, tmp_path_factory):
    """A finished run from these weights, with its baselines."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    runs.fit(workdir, init_from=weights, baselines=True, **FLAGS)
    return workdir


@pytest.mark.slow
def test_three_models_stand_side_by_side(trained):
    result = json.loads((trained / "results.json").read_text("utf-8"))
    names = [each["name"] for each in result["baselines"]]
    assert "logistic regression on features of the first weights" in names
    assert names[-1] == "training on the labels alone"
    assert result["lead"]["over"] in names


@pytest.fixture(scope="module")
def small(finished_run):
    """Flags of a run from the weights of a small one."""
    own = {"init_from": str(finished_run[0])}
    library = ("backbone", "image_size")
    return {k: v for k, v in FLAGS.items() if k not in library} | own


@pytest.mark.slow
def test_killed_and_resumed(small, tmp_path, monkeypatch):
    saved = loop._Run._save

    def killed(self, step, where):
        saved(self, step, where)
        if step == 2 and self.config.algorithm == "simmatch":
            raise KeyboardInterrupt

    flags = {"baselines": True, **small}
    runs.fit(tmp_path / "whole", **flags)
    with monkeypatch.context() as patched:
        patched.setattr(loop._Run, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            runs.fit(tmp_path / "run", **flags)
    runs.fit(tmp_path / "run", **flags)
    assert runs.began_after(tmp_path / "run") == 2
    test_loop.assert_same_run(tmp_path / "whole", tmp_path / "run", 4)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.3, 0.0])
def test_two_replicas_are_one(small, tmp_path, factor):
    flags = {
        **small,
        "precision": "float64",
        "labels_alone": 0.0,
        "backbone_rate_factor": factor,
        "threshold": 0.2,
    }
    for devices in (1, 2):
        runs.fit(tmp_path / str(devices), devices=devices, **flags)
    # A bias that is rounded away from 0 has no relative error.
    test_strategies.assert_near(
        tmp_path / "1", tmp_path / "2", step=4, bound=1e-6, least=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("weights_of", [None, "baseline"])
def test_report_export_and_predictions(trained, tmp_path, weights_of):
    report.main(
        report.ReportConfig.from_argv(
            ["x", str(trained), f"--output={tmp_path / 'report.html'}"]
        )
    )
    assert "the labels alone" in (tmp_path / "report.html").read_text("utf-8")
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(3):
        image = rng.integers(0, 256, [40, 50], np.uint8)
        PIL.Image.fromarray(image).save(tmp_path / "photos" / f"{number}.png")
    chosen = [f"--weights={weights_of}"] if weights_of else []
    export.main(
        export.ExportConfig.from_argv(
            ["x", f"--workdir={trained}", f"--output={tmp_path / 'out'}"]
            + chosen
        )
    )
    written = []
    for model, words in ((trained, chosen), (tmp_path / "out", [])):
        output = tmp_path / f"{len(written)}.jsonl"
        predict.main(
            predict.PredictConfig.from_argv(
                [
                    "x",
                    f"--model={model}",
                    f"--images={tmp_path / 'photos'}",
                    f"--output={output}",
                    *words,
                ]
            )
        )
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        written.append(rows)
    for one, other in zip(*written, strict=True):
        assert one["class"] == other["class"]
        assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-4)
    model = simmatch_tf.load(trained, weights=weights_of)
    assert model.class_names == [str(number) for number in range(10)]
