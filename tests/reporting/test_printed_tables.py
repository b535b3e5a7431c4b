import dataclasses
import pathlib

import pytest

from simmatch_tf import config
from simmatch_tf.data import answers
from simmatch_tf.reporting import printed_tables
from simmatch_tf.training import results, workdir

FIGURES = {
    "last": {
        "top1": 0.975,
        "top5": 1.0,
        "macro_accuracy": 0.97,
        "step": 400,
    },
    "best": {"top1": 0.98, "step": 300, "chosen_on": "test"},
}
RESULT = results.Result(
    top1=0.975,
    top5=1.0,
    loss=0.5,
    steps=400,
    weights_of_record="ema",
    student=FIGURES,
    ema=FIGURES,
    algorithm="simmatch",
    dataset="digits",
    class_names=list("0123456789"),
    labels=40,
    validation_labels=0,
    unlabeled=1400,
    scored_on="test",
    test_images=397,
    seed=1,
    split_seed=2,
    versions={},
)
CONFIG = config.Config(labels=40, steps=400)
BASELINES = [
    {"name": "SVM on HOG", "top1": 0.9, "interval": [0.866, 0.926]},
    {"name": "other", "top1": 0.8, "interval": [0.757, 0.836]},
]


def with_lead(top1, low, high):
    lead = {"over": "SVM on HOG", "images": 397, "top1": top1}
    lead["interval"] = [low, high]
    return dataclasses.replace(RESULT, baselines=BASELINES, lead=lead)


def test_result():
    text = printed_tables.result(RESULT, CONFIG)
    assert text.splitlines()[0] == (
        "simmatch on digits: 40 labels, 400 steps, seed 1, split seed 2"
    )
    wanted = "ema *    97.50 %  [95.5, 98.6]  100.00 %  97.00 %     98.00 %"
    assert wanted in text
    assert "397 test images.\n  95 %: Wilson's interval" in text
    assert "student *" not in text
    assert "The best step is chosen on the test images." in text
    assert max(map(len, text.splitlines()[:-1])) <= 80


def test_the_baseline_that_is_kept_is_named_with_its_folder(tmp_path):
    folder = workdir.Workdir(tmp_path / "a run")
    assert printed_tables.usable_baseline(folder) is None
    folder.path.mkdir()
    folder.baseline.touch()
    config = dataclasses.replace(CONFIG, workdir=str(folder.path))
    name = "logistic regression on features of the first weights"
    lead = {"over": name, "images": 397, "top1": -0.1, "interval": [-0.2, 0.1]}
    worse = dataclasses.replace(RESULT, baselines=BASELINES, lead=lead)
    text = " ".join(printed_tables.result(worse, config).split())
    command = f"predict --model='{folder.path}' --weights=baseline"
    assert f"That baseline is a model that can be used: {command}." in text
    assert "can be used" not in printed_tables.result(worse, CONFIG)


def test_baselines_stand_below_the_result():
    text = printed_tables.result(with_lead(0.075, 0.05, 0.1), CONFIG)
    _, _, below = text.partition("on the test images.\n\n")
    assert below.splitlines() == [
        "baseline, of the same labels    top-1          95 %",
        "----------------------------  -------  ------------",
        "SVM on HOG                    90.00 %  [86.6, 92.6]",
        "other                         80.00 %  [75.7, 83.6]",
        "",
        "The model is ahead of the best baseline by 7.5 points, 95 % interval "
        "[5.0,",
        "10.0] on the same 397 images.",
    ]


def test_a_result_that_was_not_measured():
    unknown = {"top1": None, "top5": None, "macro_accuracy": None, "step": 400}
    figures = {"last": unknown, "best": {**unknown, "chosen_on": None}}
    result = dataclasses.replace(
        RESULT,
        **{"top1": None, "top5": None, "student": figures, "ema": figures},
        scored_on=None,
        test_images=0,
    )
    text = printed_tables.result(result, CONFIG)
    assert text.splitlines()[0].startswith("simmatch on digits: 40 labels")
    assert "was not measured: there are no test images" in text
    assert "baseline" not in text and "None" not in text
    text = printed_tables.result(
        dataclasses.replace(result, baselines=BASELINES), CONFIG
    )
    assert "other                         80.00 %  [75.7, 83.6]" in text
    assert (
        "The best baseline reaches 90.0 %, 95 % interval [86.6, 92.6], by "
        "cross-validation:"
    ) in " ".join(text.split())
    assert "None" not in text and "ahead" not in text
    assert max(map(len, text.splitlines())) <= 80
    path = pathlib.Path("runs/a")
    assert "evaluate" in printed_tables.next_steps(path, CONFIG, RESULT)
    assert "evaluate" not in printed_tables.next_steps(path, CONFIG, result)


def test_model_that_is_not_ahead_is_told_what_to_do():
    text = printed_tables.result(with_lead(-0.2, -0.25, -0.15), CONFIG)
    text = " ".join(text.split())
    assert "lead is -20.0 points, 95 % interval [-25.0, -15.0]" in text
    assert (
        "To change that: train longer in another --workdir: --steps=800;"
        in text
    )
    assert "not worth using yet" in text


def test_the_next_round_of_labeling(tmp_path):
    folder, photos = tmp_path / "my run", tmp_path / "photos"
    photos.mkdir()
    labels = tmp_path / "labels.jsonl"
    with answers.Writer(labels, images=photos, classes=["a"]):
        pass

    def commands(**flags):
        own = config.Config(dataset="folder", data_dir="d", steps=1, **flags)
        text = printed_tables.next_steps(folder, own, RESULT)
        return [line for line in text.splitlines() if ".label " in line]

    assert commands(labels_from=str(labels)) == [
        f"  python -m simmatch_tf.label --images={photos} --labels={labels} "
        f"--model='{folder}'"
    ]
    photos.rename(tmp_path / "moved")
    (line,) = commands(labels_from=str(labels))
    assert " --images=d " in line
    # A table has no answers that the page could go on with.
    assert commands(labels_csv=str(labels)) == commands() == []
    assert commands(labels_from="labels.csv") == []
    labels.unlink()
    assert commands(labels_from=str(labels)) == []


def test_next_steps_of_a_run_that_can_be_extended(tmp_path):
    folder = tmp_path / "my run"
    assert "--extend" not in printed_tables.next_steps(folder, CONFIG, RESULT)
    minutes = config.Config(
        labels=40, minutes=7.5, measured_steps=400, schedule="cooldown"
    )
    text = printed_tables.next_steps(folder, minutes, RESULT)
    assert text.endswith(
        f"train --flagfile='{folder}/flags.cfg' --extend_minutes=7.5"
    )
    # It was extended to three times its length.
    longer = dataclasses.replace(RESULT, steps=1200)
    text = printed_tables.next_steps(folder, minutes, longer)
    assert text.endswith("--extend_minutes=22")
    steps = config.Config(labels=40, steps=400, schedule="cooldown")
    text = printed_tables.next_steps(folder, steps, RESULT)
    assert text.endswith("--extend_steps=400")


@pytest.mark.parametrize("classes", [3, 5, 6])
def test_top5_of_few_classes_is_not_printed(classes):
    """It is 100 % for any network."""
    names = [str(number) for number in range(classes)]
    result = dataclasses.replace(RESULT, class_names=names)
    one = {
        "top1": 0.5,
        "top5": 1.0,
        "per_class": [0.5] * classes,
        "confusion": [[1] * classes] * classes,
        "calibration_error": 0.1,
    }
    report = {
        "step": 4,
        "weights_of_record": "ema",
        "class_names": names,
        "scored_on": "test",
        "test_images": 6,
        "ema": one,
    }
    for text in (
        printed_tables.result(result, CONFIG),
        printed_tables.evaluation(report),
    ):
        assert ("top-5" in text) == ("100.00 %" in text) == (classes > 5)
    assert "(Wilson)  [18.8, 81.2]" in printed_tables.evaluation(report)


def test_result_written_and_read(tmp_path):
    RESULT.write(tmp_path / "results.json")
    assert results.read(tmp_path / "results.json") == RESULT
    assert dataclasses.asdict(RESULT)["top1"] == 0.975


def test_evaluation_without_images_of_a_class():
    one = {
        "top1": 0.5,
        "top5": 1.0,
        "per_class": [0.5, None],
        "confusion": [[3, 3], [0, 0]],
        "calibration_error": 0.1,
    }
    report = {
        "step": 4,
        "weights_of_record": "student",
        "class_names": ["cat", "dog"],
        "scored_on": "test",
        "test_images": 6,
        "student": one,
        "ema": one,
    }
    text = printed_tables.evaluation(report)
    assert "student *" in text
    (row,) = (x for x in text.splitlines() if x.startswith("class dog"))
    assert row.split() == ["class", "dog", "-", "-", "-"]
    (row,) = (x for x in text.splitlines() if x.startswith("class cat"))
    assert row.split()[2:] == [
        *("50.00 %" + " 50.00 %").split(),
        "[18.8,",
        "81.2]",
    ]
    assert "temperature" not in text
    calibrated = {**one, "uncalibrated_error": 0.25, "macro_accuracy": 0.5}
    calibrated |= {"fitted_on": "test", "fitted_images": 6}
    page = printed_tables.evaluation({**report, "student": calibrated})
    (row,) = (x for x in page.splitlines() if x.startswith("without the"))
    assert row.split()[-3:] == ["25.00", "%", "-"]
    assert (
        "The temperature was fitted on 6 test images, error by cross-fitting."
    ) in page
    assert "cat                 3    3" in text
    assert "dog                 .    ." in text
    many = {**report, "class_names": [str(i) for i in range(16)]}
    for name in ("student", "ema"):
        many[name] = {
            **one,
            "per_class": [0.5] * 16,
            "confusion": [[1] * 16] * 16,
        }
    assert "Confusion" not in printed_tables.evaluation(many)
