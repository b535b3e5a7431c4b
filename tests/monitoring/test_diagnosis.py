"""Each pattern shows where it is, on a real run, and on no healthy one."""

import dataclasses
import time

import pytest

import simmatch_tf
from simmatch_tf.data import pipeline
from simmatch_tf.monitoring import diagnosis
from simmatch_tf.training import progress
from tests import runs
from tests.docs import pages

CONFIG = runs.config("unused", steps=100)


def findings_of(config, scalars, step, steps=100):
    judged = diagnosis.judge(config, scalars, step=step, steps=steps)
    return [finding for finding in judged.values() if finding]


def find(step=100, changes=None, **scalars):
    config = dataclasses.replace(CONFIG, **(changes or {}))
    by_tag = {
        tag.replace("__", "/"): dict(enumerate(values))
        for tag, values in scalars.items()
    }
    findings = findings_of(config, by_tag, step)
    return [finding.name for finding in findings]


def test_no_pseudo_labels():
    low, high = [0.0] * diagnosis.RECENT, [0.02] * diagnosis.RECENT
    assert find(pseudo_label__mask_rate=low) == ["no_pseudo_labels"]
    assert find(pseudo_label__mask_rate=high) == []
    # Only the last few count, and they must be enough.
    assert find(pseudo_label__mask_rate=high + low) == ["no_pseudo_labels"]
    assert find(pseudo_label__mask_rate=low[1:]) == []
    # Nothing is said at the start of a run.
    assert find(step=9, pseudo_label__mask_rate=low) == []
    # A value that is not finite is no value.
    assert find(pseudo_label__mask_rate=[float("nan"), *low[1:]]) == []


def test_collapse():
    assert find(pseudo_label__balance=[0.49] * diagnosis.RECENT) == ["collapse"]
    assert find(pseudo_label__balance=[0.51] * diagnosis.RECENT) == []
    # KL from uniform of log 2: as if half of the classes occurred.
    assert find(alignment__divergence=[0.7] * diagnosis.RECENT) == ["collapse"]
    assert find(alignment__divergence=[0.69] * diagnosis.RECENT) == []


@pytest.mark.parametrize(
    ("changes", "align"),
    [
        ({"algorithm": "fixmatch"}, True),
        ({"algorithm": "fixmatch", "align": True}, False),
        ({}, False),
        ({"align": False}, True),
    ],
)
def test_collapse_names_alignment_where_it_is_off(changes, align):
    config = dataclasses.replace(CONFIG, **changes)
    scalars = {
        "pseudo_label/balance": dict(enumerate([0.1] * diagnosis.RECENT))
    }
    (finding,) = findings_of(config, scalars, 100)
    assert ("--align" in finding.turn) == align
    assert "10%" in finding.says


def test_confident_but_wrong():
    wrong = {"pseudo_label__sure": [0.5] * diagnosis.RECENT}
    assert find(
        **wrong, pseudo_label__sure_accuracy=[0.49] * diagnosis.RECENT
    ) == ["confident_but_wrong"]  # fmt: skip
    assert (
        find(**wrong, pseudo_label__sure_accuracy=[0.51] * diagnosis.RECENT)
        == []
    )
    few = {"pseudo_label__sure": [0.09] * diagnosis.RECENT}
    assert (
        find(**few, pseudo_label__sure_accuracy=[0.1] * diagnosis.RECENT) == []
    )


def test_confident_but_wrong_where_classes_are_not_known():
    sure = {"pseudo_label__confidence": [0.9] * diagnosis.RECENT}
    wrong = ["confident_but_wrong"]
    assert find(**sure, test__ema_top1=[0.9, 0.4]) == wrong
    assert find(**sure, test__ema_top1=[0.4, 0.6]) == []
    # What it is scored on while it trains: those set aside, if there are any.
    assert find(**sure, test__ema_top1=[0.4], validation__ema_top1=[0.8]) == []
    teacher = {"changes": {"targets_from": "teacher"}}
    assert find(**sure, **teacher, test__ema_top1=[0.4]) == []
    assert find(**sure, **teacher, test__student_top1=[0.4]) == wrong
    assert find(pseudo_label__confidence=[0.9] * diagnosis.RECENT) == []


def test_memory_waits():
    assert find(step=25, memory__filled=[0.5, 0.9]) == ["memory_waits"]
    assert find(step=24, memory__filled=[0.5, 0.9]) == []
    assert find(step=25, memory__filled=[0.5, 1.0]) == []
    late = {"matching_start_steps": 60}
    assert find(step=59, changes=late, memory__filled=[1.0]) == ["memory_waits"]
    assert find(step=60, changes=late, memory__filled=[1.0]) == []


def test_input_bound():
    assert find(speed__input_wait=[0.31] * diagnosis.RECENT) == ["input_bound"]
    assert find(speed__input_wait=[0.29] * diagnosis.RECENT) == []


def test_ema_lags():
    tops = {"test__student_top1": [0.1, 0.9], "test__ema_top1": [0.9, 0.7]}
    assert find(**tops) == ["ema_lags"]
    assert find(step=49, **tops) == []
    assert find(**tops | {"test__ema_top1": [0.1, 0.85]}) == []


def test_the_ema_lags_for_two_reasons():
    tops = {"test/student_top1": {80: 0.9}, "test/ema_top1": {80: 0.7}}
    for momentum, warmup, slow in (
        (0.999, False, True), (0.9, False, False), (0.999, True, False),
    ):  # fmt: skip
        config = dataclasses.replace(
            CONFIG, ema_momentum=momentum, ema_warmup=warmup
        )
        (finding,) = findings_of(config, tops, 80)
        assert ("--ema_warmup" in finding.turn) == slow
        assert ("--learning_rate" in finding.turn) != slow


def test_an_old_evaluation_says_nothing_of_now():
    seen = {"pseudo_label/accuracy_all": dict.fromkeys(range(50, 100, 5), 0.9)}
    for step, names in ((60, []), (80, ["statistics_lag"])):
        tops = {"test/student_top1": {step: 0.5}}
        findings = findings_of(CONFIG, seen | tops, 95)
        assert [finding.name for finding in findings] == names


def test_problems_have_the_names_of_the_page():
    text = (pages.ROOT / "docs" / "monitoring.md").read_text("utf-8")
    rows = text.partition("| pattern |")[2].partition("\n\n")[0].splitlines()
    titles = [row.split(" | ")[0].removeprefix("| ") for row in rows[2:]]
    assert titles == [diagnosis.TITLES[name] for name in diagnosis.PATTERNS]


def test_what_cannot_be_judged():
    def missing(scalars, classes=None, **changes):
        config = dataclasses.replace(CONFIG, **changes)
        judged = diagnosis.judge(
            config, scalars, step=100, steps=100, classes=classes
        )
        return [name for name in judged if judged[name] is None]

    assert missing({}) == list(diagnosis.PATTERNS)
    # What a method has no part of is not missing.
    assert missing({}, algorithm="supervised") == ["input_bound", "ema_lags"]
    fixmatch = missing({}, algorithm="fixmatch", targets_from="teacher")
    assert "memory_waits" not in fixmatch and "statistics_lag" not in fixmatch
    enough = dict(enumerate([0.7] * diagnosis.RECENT))
    tags = (
        "pseudo_label/mask_rate", "pseudo_label/balance", "pseudo_label/sure",
        "pseudo_label/sure_accuracy", "pseudo_label/accuracy_all",
        "alignment/divergence", "memory/filled", "test/student_top1",
        "test/ema_top1",
    )  # fmt: skip
    scalars = dict.fromkeys(tags, enough) | {"memory/filled": {9: 1.0}}
    scalars["alignment/divergence"] = dict.fromkeys(range(5), 0.1)
    scalars["class_share/cat"] = dict.fromkeys(range(5), 0.5)
    two = diagnosis.Classes(("cat", "dog"), (9, 9))
    assert missing(scalars, two) == ["input_bound"]
    scalars["speed/input_wait"] = dict.fromkeys(range(5), 0.1)
    assert missing(scalars, two) == []
    assert findings_of(CONFIG, scalars, 100) == []


def test_statistics_lag():
    seen = {"pseudo_label__accuracy_all": [0.9] * diagnosis.RECENT}
    assert find(**seen, test__student_top1=[0.6]) == ["statistics_lag"]
    assert find(**seen, test__student_top1=[0.7]) == []
    teacher = {"targets_from": "teacher"}
    assert find(**seen, changes=teacher, test__student_top1=[0.6]) == []


def test_every_finding_has_a_reason_and_a_flag():
    config = dataclasses.replace(CONFIG, matching_start_steps=90)
    low, high = (dict(enumerate([x] * diagnosis.RECENT)) for x in (0.0, 0.9))
    scalars = {
        "pseudo_label/mask_rate": low,
        "pseudo_label/balance": low,
        "pseudo_label/sure": high,
        "pseudo_label/sure_accuracy": low,
        "pseudo_label/accuracy_all": high,
        "memory/filled": {80: 1.0},
        "speed/input_wait": high,
        "test/student_top1": {80: 0.5},
        "test/ema_top1": {80: 0.2},
    }
    classes = diagnosis.Classes(("cat", "dog"), (1, 9))
    judged = diagnosis.judge(
        config, scalars, step=80, steps=100, classes=classes
    )
    # A collapse is no drift as well.
    assert judged.pop("prior_drift") is None
    even = {
        "pseudo_label/balance": dict(enumerate([1.0] * diagnosis.RECENT)),
        "class_share/cat": high,
        "class_share/dog": dict(enumerate([0.1] * diagnosis.RECENT)),
    }
    drift = diagnosis.judge(config, even, step=80, steps=100, classes=classes)[
        "prior_drift"
    ]
    findings = [*judged.values(), drift]
    for finding in findings:
        assert finding.why and "--" in finding.turn
        named = {
            word.strip(".,;:()").removeprefix("--").split("=")[0]
            for text in (finding.why, finding.turn)
            for word in text.split()
            if word.strip("(").startswith("--")
        }
        assert all(hasattr(config, name) for name in named), named


# A run each that shows it, and one that shows nothing.
SHOWN = {
    "": {"threshold": 0.0, "batch_size": 16},
    "no_pseudo_labels": {"threshold": 1.0},
    "collapse": {
        "algorithm": "fixmatch",
        "threshold": 0.0,
        "lambda_u": 50.0,
        "learning_rate": 0.1,
        "steps": 60,
    },
    "confident_but_wrong": {
        "algorithm": "fixmatch",
        "threshold": 0.0,
        "lambda_u": 5.0,
        "labels": 10,
        "learning_rate": 0.1,
    },
    "memory_waits": {"labels": 200, "batch_size": 4, "threshold": 0.0},
    "input_bound": {"threshold": 0.0},
    "ema_lags": {"ema_momentum": 0.9999, "ema_warmup": False},
    "statistics_lag": {"batch_norm_momentum": 0.999, "batch_size": 16},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_a_run_warns(name, tmp_path, monkeypatch, capsys):
    if name == "input_bound":
        read = pipeline.read_next

        def slow(batches, when):
            time.sleep(0.05)
            return read(batches, when)

        monkeypatch.setattr(pipeline, "read_next", slow)
    told = []
    warn = progress.Progress.warn

    def listen(self, findings):
        told.extend(finding.name for finding in findings)
        warn(self, findings)

    monkeypatch.setattr(progress.Progress, "warn", listen)
    changes = {
        "steps": 40, "eval_every": 20, "checkpoint_every": 40,
        **SHOWN[name],
    }  # fmt: skip
    runs.fit(tmp_path, **changes)
    shown = capsys.readouterr().err
    if not name:
        assert not told and "warning" not in shown
        return
    assert told.count(name) == 1  # once a run
    # The text, too, once for each that was told.
    assert shown.count("warning: ") == len(told)


# ------------------------------------------------------------- baselines ---


def not_ahead(top1, low, high, **flags):
    values = {"labels": 40, "steps": 400, **flags}
    lead = {"over": "SVM", "images": 400, "top1": top1, "interval": [low, high]}
    return diagnosis.not_ahead(
        simmatch_tf.Config(**values), lead, steps=400, labels=40
    )


def test_model_ahead_of_its_baselines():
    assert not_ahead(0.05, 0.001, 0.1) is None
    config = simmatch_tf.Config(labels=40, steps=400)
    assert diagnosis.not_ahead(config, None, steps=400, labels=40) is None


def test_model_below_a_baseline():
    finding = not_ahead(-0.065, -0.089, -0.041)
    assert "-6.5 points, 95 % interval [-8.9, -4.1]" in finding.says
    assert "SVM" in finding.says and "400 images" in finding.says
    assert "not worth using" in finding.why
    for word in ("--steps=800", "--threshold=0.7 instead of 0.95", "80 in all"):
        assert word in finding.turn
    assert "score on" not in finding.turn


def test_model_as_good_as_a_baseline():
    finding = not_ahead(0.02, -0.02, 0.06)
    assert "may be chance" in finding.why
    # The interval is twice as wide as it must be: four times the images.
    assert "lead of 2.0 points is real, score on about 1600" in finding.turn
    assert "score on" not in not_ahead(0.0, -0.02, 0.02).turn


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ({"steps": None, "epochs": 2.5}, "--epochs=5"),
        ({"steps": None, "minutes": 10.0}, "--minutes=20"),
        ({"schedule": "cooldown"}, "go on training with --extend_steps=400"),
        (
            {"steps": None, "minutes": 10.0, "schedule": "cooldown"},
            "--extend_minutes=10",
        ),
        ({"algorithm": "supervised"}, "--algorithm=simmatch"),
    ],
)
def test_advice_has_the_values_of_the_run(flags, word):
    assert word in not_ahead(-0.1, -0.2, -0.05, **flags).turn


def test_advice_does_not_lower_a_low_threshold():
    assert "--threshold" not in not_ahead(-0.1, -0.2, -0.05, threshold=0.7).turn
    finding = not_ahead(-0.1, -0.2, -0.05, algorithm="supervised")
    assert "--threshold" not in finding.turn


def judged(prior=None, labeled=(20, 20, 20), shares=(), **changes):
    """The findings on classes of a run whose pseudo-labels have shares."""
    config = dataclasses.replace(CONFIG, **changes)
    scalars = {
        f"{diagnosis.SHARES}{name}": dict.fromkeys(
            range(diagnosis.RECENT), share
        )
        for name, share in zip(("cat", "dog", "owl"), shares, strict=False)
    }
    classes = diagnosis.Classes(("cat", "dog", "owl"), labeled, prior)
    return diagnosis.judge(
        config, scalars, step=100, steps=100, classes=classes
    )


def test_prior_drift():
    prior = (0.6, 0.3, 0.1)
    drift = judged(prior, shares=(0.35, 0.45, 0.2))["prior_drift"]
    assert drift.says == (
        "The pseudo-labels have drifted from the prior, by 25% of the images: "
        "cat 35% instead of 60%, dog 45% instead of 30%, owl 20% instead of "
        "10%."
    )
    assert "--class_prior=uniform, or a file" in drift.turn
    assert drift.turn.endswith("Else label more images of cat.")
    assert judged(prior, shares=(0.5, 0.3, 0.2))["prior_drift"] is False
    # Equal shares are a prior, too.
    drift = judged(shares=(0.6, 0.3, 0.1))["prior_drift"]
    assert "cat 60% instead of 33%" in drift.says
    assert "--class_prior=labeled, or a file" in drift.turn
    assert judged(prior)["prior_drift"] is None
    assert judged(shares=(0.6, 0.3, 0.1), align=False)["prior_drift"] is False


def test_few_classes_of_most_images_are_no_collapse_with_a_prior():
    balance = {"pseudo_label/balance": dict.fromkeys(range(5), 0.4)}
    for prior, shows in ((None, True), ((0.9, 0.05, 0.05), False)):
        classes = diagnosis.Classes(("a", "b", "c"), (9, 9, 9), prior)
        findings = diagnosis.judge(
            CONFIG, balance, step=100, steps=100, classes=classes
        )
        assert bool(findings["collapse"]) == shows


def test_unequal_labels():
    finding = judged(labeled=(45, 23, 7))["unequal_labels"]
    assert finding.says.startswith(
        "Classes have from 7 (owl) to 45 (cat) labeled images"
    )
    assert finding.turn.startswith("--class_prior=labeled")
    assert judged(labeled=(13, 10, 7))["unequal_labels"] is False
    prior = (0.6, 0.3, 0.1)
    assert judged(prior, labeled=(45, 23, 7))["unequal_labels"] is False
    unaligned = judged(labeled=(45, 23, 7), align=False)
    assert unaligned["unequal_labels"] is False


def test_shares_of_many_classes_are_not_judged():
    many = diagnosis.MOST_SHARES + 1
    names = tuple(map(str, range(many)))
    classes = diagnosis.Classes(names, (1,) * many)
    findings = diagnosis.judge(CONFIG, {}, step=100, steps=100, classes=classes)
    assert findings["prior_drift"] is False
