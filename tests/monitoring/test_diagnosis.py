"""Each pattern shows where it is, on a real run, and on no healthy one."""

import dataclasses
import math
import re
import time

import pytest

import simmatch_tf
from simmatch_tf.data import pipeline
from simmatch_tf.evaluation import baselines
from simmatch_tf.monitoring import diagnosis
from simmatch_tf.training import progress
from tests import runs, variants
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


@pytest.mark.parametrize("algorithm", ["freematch", "softmatch"])
@pytest.mark.parametrize(
    ("problem", "scalars"),
    [
        ("no_pseudo_labels", {"pseudo_label/mask_rate": 0.0}),
        ("collapse", {"pseudo_label/balance": 0.2}),
        (
            "confident_but_wrong",
            {"pseudo_label/sure": 0.9, "pseudo_label/sure_accuracy": 0.1},
        ),
    ],
)
def test_a_method_without_a_threshold_is_not_told_of_one(
    algorithm, problem, scalars
):
    config = runs.config("unused", algorithm=algorithm)
    by_tag = {
        tag: dict.fromkeys(range(diagnosis.RECENT), value)
        for tag, value in scalars.items()
    }
    by_tag[diagnosis.QUARTILE] = dict.fromkeys(range(diagnosis.RECENT), 0.6)
    (finding,) = findings_of(config, by_tag, step=100)
    assert finding.name == problem
    named = re.findall(r"--(\w+)", f"{finding.why} {finding.turn}")
    assert set(named) <= set(config.fields()) and named


@pytest.mark.parametrize(
    ("threshold", "quartile", "advice"),
    [
        # The bin below, so that a quarter reach it.
        (0.95, 0.62, "--threshold=0.6 instead of 0.95: a quarter of the"),
        (0.95, 0.65, "--threshold=0.65 instead"),
        # Lower would be guesses; a step down that most would not reach.
        (0.95, 0.3, "--threshold=0.5 instead of 0.95."),
        # Not known, or no lower than now.
        (0.95, None, "--threshold=0.7 instead of 0.95."),
        (0.7, None, "--threshold=0.5 instead of 0.7."),
        (0.7, 0.75, "--threshold=0.5 instead of 0.7."),
        (0.5, None, "Train longer, in another --workdir: --steps=200."),
    ],
)
def test_no_pseudo_labels_name_a_threshold(threshold, quartile, advice):
    config = dataclasses.replace(CONFIG, threshold=threshold)
    scalars = {"pseudo_label/mask_rate": dict.fromkeys(range(5), 0.0)}
    if quartile is not None:
        scalars[diagnosis.QUARTILE] = dict.fromkeys(range(5), quartile)
    (finding,) = findings_of(config, scalars, 100)
    assert finding.turn.startswith(advice) or advice in finding.turn
    assert "--alpha=0.95" in finding.turn
    config = dataclasses.replace(config, alpha=1.0)
    assert "--alpha" not in findings_of(config, scalars, 100)[0].turn


def test_advice_is_of_flags_that_the_method_has():
    config = simmatch_tf.Config(algorithm="comatch", labels=10, steps=100)
    scalars = {"pseudo_label/mask_rate": dict.fromkeys(range(5), 0.0)}
    (finding,) = findings_of(config, scalars, 100)
    assert "--threshold" in finding.turn and "--alpha" not in finding.turn


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
            config, scalars, step=100, steps=100, classes=classes, images=99
        )
        return [name for name in judged if judged[name] is None]

    assert missing({}) == list(diagnosis.PATTERNS)
    # What a method has no part of is not missing.
    assert missing({}, algorithm="supervised") == [
        "too_short", "unlabeled_classes", "input_bound", "ema_lags",
    ]  # fmt: skip
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
    scalars["class_used/cat"] = scalars["class_used/dog"] = enough
    scalars["test/ema_top1"] = dict.fromkeys((20, 30, 50, 70), 0.7)
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
    even |= {"class_used/cat": high, "class_used/dog": low}
    even["test/ema_top1"] = {step: step / 200 for step in range(20, 101, 10)}
    config = dataclasses.replace(config, unlabeled_ratio=7)
    judged_at_end = diagnosis.judge(
        config, even, step=100, steps=100, classes=classes, images=2000
    )
    late = ("too_short", "starved_classes", "prior_drift")
    assert judged.pop("too_short") is judged.pop("starved_classes") is None
    assert judged.pop("unlabeled_classes") is False
    findings = [*judged.values(), *(judged_at_end[name] for name in late)]
    classes = diagnosis.Classes(("cat", "dog"), (0, 9))
    findings.append(
        diagnosis.judge(config, {}, step=0, steps=9, classes=classes)[
            "unlabeled_classes"
        ]
    )
    for finding in findings:
        assert finding.why and re.search(r"--\w+=\w|turn on --", finding.turn)
        # No flag is to be raised or lowered to a value that is not said.
        assert not re.search(
            r"(Lower|Raise|lower|raise) --\w+[^=\w]", finding.turn
        )
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
@pytest.mark.parametrize(
    "name", variants.of(SHOWN, ("", "no_pseudo_labels", "collapse"))
)
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


def not_ahead(top1, low, high, over="SVM", **flags):
    values = {"labels": 40, "steps": 400, **flags}
    lead = {"over": over, "images": 400, "top1": top1, "interval": [low, high]}
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


def test_model_below_the_labels_alone():
    over = baselines.LABELS_ALONE
    finding = not_ahead(-0.065, -0.089, -0.041, over=over)
    assert "labels_alone/ of this run's folder is the better" in finding.why
    assert "scikit-learn" not in finding.why
    assert "may be chance" in not_ahead(0.02, -0.02, 0.06, over=over).why


@pytest.mark.parametrize(
    ("kind", "which"),
    [
        ("logistic regression", "That baseline is"),
        ("SVM", "The logistic regression on the same features is"),
    ],
)
@pytest.mark.parametrize("high", [-0.05, 0.05])
def test_a_better_baseline_that_is_kept_can_be_used(kind, which, high):
    command = "predict --model=runs/a --weights=baseline"
    lead = {"images": 400, "top1": -0.1, "interval": [-0.2, high]}
    over = f"{kind} on features of the first weights (9 of 90 labels)"

    def why(over, usable=command):
        finding = diagnosis.not_ahead(
            simmatch_tf.Config(labels=40, steps=400),
            {**lead, "over": over},
            steps=400,
            labels=40,
            usable=usable,
        )
        return finding.why

    assert f"{which} a model that can be used: {command}." in why(over)
    assert "can be used" not in why(over, None)
    assert "can be used" not in why(f"{kind} on HOG and thumbnail")


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
        (
            {"schedule": "cooldown"},
            "by the same command with --extend_steps=400",
        ),
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
    assert drift.turn.endswith(
        "Else label more images of cat (now 20), such as twice as many."
    )
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
    assert "macro" in finding.turn
    assert judged(labeled=(13, 10, 7))["unequal_labels"] is False
    prior = (0.6, 0.3, 0.1)
    assert judged(prior, labeled=(45, 23, 7))["unequal_labels"] is False
    unaligned = judged(labeled=(45, 23, 7), align=False)
    assert unaligned["unequal_labels"] is False


@pytest.mark.parametrize(
    ("labeled", "name"),
    [((9, 2), "unequal_labels"), ((9, 0), "unlabeled_classes")],
)
def test_labels_are_judged_before_the_first_step(labeled, name):
    classes = diagnosis.Classes(("cat", "dog"), labeled)
    findings = diagnosis.judge(CONFIG, {}, step=0, steps=100, classes=classes)
    assert [name for name in findings if findings[name]] == [name]
    assert len([1 for each in findings.values() if each is not None]) == 2
    # A finding says it, and no line beside it.
    assert bool(diagnosis.imbalance(classes)) == (name == "unequal_labels")


def test_classes_without_labels():
    finding = judged(labeled=(45, 0, 0))["unlabeled_classes"]
    assert finding.says == (
        "No labeled image is of 2 of the 3 classes (dog, owl)."
    )
    assert "alignment gives them pseudo-labels" in finding.why
    prior = judged((0.9, 0.05, 0.05), labeled=(45, 0, 0))["unlabeled_classes"]
    assert "alignment" not in prior.why
    assert judged(labeled=(1, 1, 1))["unlabeled_classes"] is False
    findings = diagnosis.judge(CONFIG, {}, step=9, steps=9)
    assert findings["unlabeled_classes"] is None


def test_line_on_unequal_labels():
    classes = diagnosis.Classes(
        ("cat", "dog", "owl"), (45, 23, 7), (0.6, 0.3, 0.1)
    )
    assert diagnosis.imbalance(classes).startswith(
        "classes have from 7 (owl) to 45 (cat) labeled images: read the macro"
    )
    assert diagnosis.imbalance(diagnosis.Classes(("a", "b"), (13, 7))) == ""


def starved(used, shares=None, prior=None, labeled=(20, 20, 20), **changes):
    """The finding on classes with few used pseudo-labels.

    64 images of each of 5 logged steps are 320 in all.
    """
    values = {"batch_size": 16, "unlabeled_ratio": 4, **changes}
    config = dataclasses.replace(CONFIG, **values)
    names = ("cat", "dog", "owl")
    scalars = {
        f"{prefix}{name}": dict.fromkeys(range(5), share)
        for prefix, row in (
            ("class_used/", used),
            ("class_share/", shares or used),
        )
        for name, share in zip(names, row, strict=True)
    }
    classes = diagnosis.Classes(names, labeled, prior)
    return diagnosis.judge(
        config, scalars, step=100, steps=100, classes=classes
    )["starved_classes"]


def test_starved_classes():
    # A fifth of a third of 60 % are 4 %: owl has less.
    finding = starved((0.3, 0.27, 0.03), labeled=(20, 20, 7))
    assert finding.says == (
        "1 of 3 classes have hardly any pseudo-labels that are used: owl 5.0% "
        "instead of 33.3%."
    )
    assert finding.turn == (
        "Label more images of owl (now 7), such as twice as many; or if the "
        "classes really are that rare among the unlabeled images, nothing is "
        "wrong, and --class_prior=labeled or --class_prior=FILE says so."
    )
    assert starved((0.3, 0.25, 0.05)) is False
    # It is the share in the prior that counts, or of the labels.
    assert starved((0.3, 0.27, 0.03), prior=(0.5, 0.45, 0.05)) is False
    unaligned = {"align": False, "labeled": (50, 45, 5)}
    assert starved((0.3, 0.27, 0.03), **unaligned) is False
    assert starved((0.4, 0.2, 0.0), align=False)


def test_starved_classes_that_are_recognized():
    """The threshold is why where all pseudo-labels do name the class."""
    finding = starved((0.3, 0.3, 0.0), (0.4, 0.3, 0.3), threshold=0.95)
    assert "owl are recognized, but not with the confidence of" in finding.why
    assert finding.turn.startswith("--threshold=0.7 instead of 0.95; or label")


def test_few_pseudo_labels_are_no_lack_of_a_class():
    # 320 images, of which 9 % count: 9.6 of each class.
    assert starved((0.05, 0.04, 0.0)) is False
    assert starved((0.05, 0.045, 0.0))  # 10.1 of each
    assert starved((0.5, 0.5, 0.0), prior=(0.49, 0.49, 0.02)) is False
    # Not early in a run, where the easy classes come first.
    scalars = {f"class_used/{n}": dict.fromkeys(range(5), 0.5) for n in "ab"}
    classes = diagnosis.Classes(("a", "b"), (1, 1))
    judged = diagnosis.judge(
        CONFIG, scalars, step=49, steps=100, classes=classes
    )
    assert judged["starved_classes"] is None


def test_many_starved_classes_are_counted():
    names = tuple("abcdefghij")
    scalars = {
        f"class_used/{name}": dict.fromkeys(
            range(5), 0.0 if name > "e" else 0.2
        )
        for name in names
    }
    config = dataclasses.replace(CONFIG, batch_size=16, unlabeled_ratio=4)
    finding = diagnosis.judge(
        config,
        scalars,
        step=100,
        steps=100,
        classes=diagnosis.Classes(names, (2,) * 10),
    )["starved_classes"]
    assert finding.says.startswith("5 of 10 classes")
    assert finding.says.endswith("h 0.0% instead of 10.0%, and 2 more.")


# ------------------------------------------------------------- too short ---


def test_trend_by_hand():
    points = {
        math.exp(x): y
        for x, y in zip((5, 5.4, 5.8, 6.2), (0.1, 0.2, 0.3, 0.4), strict=True)
    }
    rise = diagnosis.trend(points, math.exp(6.2), deviation=0.02)
    assert rise.slope == pytest.approx(0.25)  # 0.1 per 0.4
    assert rise.before == pytest.approx(0.25)
    # 0.02 · 1.96 over the root of the squares of -0.4, 0, 0.4.
    assert rise.half == pytest.approx(0.0693, abs=1e-4)
    assert rise.gain() == pytest.approx(0.25 * math.log(2))
    # Around 0.2 x + 0.2 they scatter by -0.2, 0.6, -0.6, 0.2: √(0.8 / 2), and
    # t of two degrees of freedom is 4.303.
    points = {math.exp(5 + x / 3): x % 2 for x in range(4)}
    flat = diagnosis.trend(points, math.exp(6))
    assert flat.slope == pytest.approx(0) == flat.before
    assert flat.half == pytest.approx(
        4.303 * math.sqrt(0.4) / math.sqrt(2 / 9), rel=1e-6
    )


def test_trend_of_what_counts():
    # From a quarter of the last step on; values that are not finite do not.
    values = {step: step / 1000 for step in range(100, 900, 100)}
    assert diagnosis.trend(values, 400).first == pytest.approx(200)
    assert diagnosis.trend(values, 300) is None
    same = diagnosis.trend({**values, 100: 9.0}, 800)
    assert same == diagnosis.trend(values, 800)
    assert diagnosis.trend({**values, 300: math.nan}, 400) is None
    # Many are averaged in eight groups: of 64 values, eight each.
    many = {step: 0.0 if step % 2 else 1.0 for step in range(37, 101)}
    rise = diagnosis.trend(many, 100)
    assert rise.slope == pytest.approx(0) and rise.half < 0.01
    assert 40 < rise.first < 100


def test_gain_of_a_slope_that_becomes_smaller():
    slowing = diagnosis.Trend(1, 2, slope=0.05, half=0.0, before=0.1)
    assert slowing.gain() == pytest.approx(0.025 * math.log(2))
    rising = dataclasses.replace(slowing, before=0.02)
    assert rising.gain() == pytest.approx(0.05 * math.log(2))


RISING = [0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55]
HISTORIES = {
    "rising": (RISING, True),
    "flat": ([0.45] * 8, False),
    "falling": (RISING[::-1], False),
    # It has learned early, and then only scatters.
    "noisy": ([0.2, 0.4, 0.45, 0.42, 0.47, 0.43, 0.46, 0.47], False),
    # 1 - e^-s: most of it is over.
    "saturating": ([0.5 - 0.4 * math.exp(-x) for x in range(8)], False),
    # Rising, but too slowly to be worth twice the time.
    "slow": ([0.45 + 0.01 * math.log(x + 1) for x in range(8)], False),
    "two evaluations": ([None] * 6 + [0.2, 0.5], None),
    "three evaluations": ([None] * 5 + [0.2, 0.3, 0.5], None),
    # What came after the rate began to fall is another thing.
    "only the cool-down": ([0.4] * 8 + [0.6, 0.7], False),
    "right after the cool-down": ([*RISING, 0.9, 0.97], False),
    "worse after the cool-down": ([*RISING, 0.5, 0.5], False),
}


def at_end(history, images=2000, tag="test/ema_top1", **changes):
    """The finding of a run of 1,000 steps, evaluated every 100."""
    values = {"steps": 1000, "schedule": "cooldown", **changes}
    config = dataclasses.replace(CONFIG, **values)
    points = {
        100 * number: value
        for number, value in enumerate(history, 1)
        if value is not None
    }
    return diagnosis.judge(
        config, {tag: points}, step=1000, steps=1000, images=images
    )["too_short"]


@pytest.mark.parametrize("name", HISTORIES)
def test_too_short(name):
    history, shows = HISTORIES[name]
    judged = at_end(history)
    assert judged is shows if not shows else judged.name == "too_short"


def test_too_short_says_how_fast_and_what_to_do():
    finding = at_end(RISING)
    # From 500 to 800 steps by 5 points each 100, over the logarithm 0.318 a
    # unit, which is 0.318 / 800 a step at the end.
    assert finding.says.startswith(
        "The test top-1 was still rising when the learning rate began to fall, "
        "by 40 points per 1,000 steps (95 % interval ["
    )
    assert "gains about 22 points" in finding.why
    assert finding.turn == (
        "Go on training by the same command with --extend_steps=1000."
    )
    minutes = {"steps": None, "minutes": 10.0, "measured_steps": 1000}
    finding = at_end(RISING, **minutes)
    assert "by 4.0 points a minute" in finding.says
    assert finding.turn.endswith("with --extend_minutes=10.")
    # It was extended from 500 steps: the run took 20 minutes in all.
    minutes |= {"measured_steps": 500, "extended_steps": 1000}
    assert "--extend_minutes=20." in at_end(RISING, **minutes).turn
    finding = at_end(RISING, schedule="constant")
    assert "still rising at the end" in finding.says
    assert finding.turn == "Train longer in another --workdir: --steps=2000."


def test_too_short_of_few_images():
    """On 20 images an accuracy scatters by 11 points."""
    assert at_end(RISING, images=20) is False
    assert at_end(RISING, images=None) is None


def test_too_short_where_the_rate_falls_all_along():
    # Only what came before half the rate: step 761 of 1,000.
    late = [0.4] * 7 + [0.5, 0.6, 0.7]
    assert at_end(late, schedule="cosine_7_16") is False
    finding = at_end([*RISING, 0.6, 0.6], schedule="cosine_7_16")
    assert "when the learning rate had fallen to half" in finding.says
    assert at_end([*RISING, 0.6, 0.6], schedule="half_cosine")
    # The evaluation weights of a run with an EMA teacher are the student's.
    teacher = {"targets_from": "teacher", "tag": "test/student_top1"}
    assert at_end(RISING, **teacher).name == "too_short"
    assert at_end(RISING, targets_from="teacher") is None
    assert at_end(RISING, tag="validation/ema_top1").name == "too_short"


def test_too_short_is_told_at_the_end_only():
    config = dataclasses.replace(CONFIG, schedule="constant")
    rising = {"test/ema_top1": {10 * n: 0.05 * n for n in range(1, 10)}}
    for step, shows in ((99, False), (100, True)):
        judged = diagnosis.judge(
            config, rising, step=step, steps=100, images=2000
        )
        assert bool(judged["too_short"]) == shows


@pytest.mark.parametrize(
    ("losses", "shows"),
    [
        ([2.3, 2.2, 2.0, 1.9, 1.8, 1.7, 1.6, 1.5], True),
        ([2.3, 1.5, 1.0, 0.8, 0.6, 0.5, 0.4, 0.3], False),  # it has learned
        ([1.6] * 8, False),  # it does not learn at all
        ([1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.1, 2.2], False),
    ],
)
def test_labels_that_are_not_learned(losses, shows):
    """Two evaluations tell nothing; ln 10 is 2.30, half of it 1.15."""
    scalars = {
        "test/ema_top1": {500: 0.2, 1000: 0.3},
        "loss/s": {100 * n: loss for n, loss in enumerate(losses, 1)},
    }
    config = dataclasses.replace(CONFIG, steps=1000, schedule="cooldown")
    classes = diagnosis.Classes(tuple("abcdefghij"), (4,) * 10)
    finding = diagnosis.judge(
        config, scalars, step=1000, steps=1000, classes=classes, images=2000
    )["too_short"]
    assert (
        finding is None
        if not shows
        else finding.says.startswith(
            "The loss on the labeled images is 1.70 (guessing gives 2.30)"
        )
    )


def test_shares_of_many_classes_are_not_judged():
    many = diagnosis.MOST_SHARES + 1
    names = tuple(map(str, range(many)))
    classes = diagnosis.Classes(names, (1,) * many)
    findings = diagnosis.judge(CONFIG, {}, step=100, steps=100, classes=classes)
    assert findings["prior_drift"] is False
