"""Scalars from what a step gives, by hand; the speed; the profiler."""

import numpy as np
import pytest

from simmatch_tf.flags.errors import InputError
from simmatch_tf.monitoring import diagnosis, monitor
from tests import runs

CONFIG = runs.config("unused", lambda_u=2.0, lambda_in=3.0)


def test_weighted_losses():
    scalars = monitor.Scalars(CONFIG, 16)
    values = scalars.of_step(
        {"loss/s": 1.0, "loss/u": 0.5, "loss/in": 0.25}, None
    )
    assert values == {
        "loss/s": 1.0,
        "loss/u": 0.5,
        "loss/in": 0.25,
        "loss/weighted_u": 1.0,
        "loss/weighted_in": 0.75,
    }
    assert scalars.of_step({"loss/s": 1.0}, None) == {"loss/s": 1.0}
    # A ramp is known to the method alone.
    ramped = {"loss/u": 0.5, "loss/weighted_u": 0.1}
    assert scalars.of_step(ramped, None) == ramped


def test_accuracies_are_of_known_images():
    scalars = monitor.Scalars(CONFIG, 16)
    means = {
        "known": 0.8, "right": 0.6, "kept": 0.4, "kept_right": 0.1,
        "sure": 0.0, "sure_right": 0.0,
    }  # fmt: skip
    values = scalars.of_step({}, means)
    assert values == pytest.approx(
        {
            "pseudo_label/accuracy": 0.25,
            "pseudo_label/accuracy_all": 0.75,
            "pseudo_label/sure": 0.0,
        }
    )
    # None is sure: what share of none is right has no value.
    assert "pseudo_label/sure_accuracy" not in values


def test_balance_waits_for_enough_labels():
    scalars = monitor.Scalars(CONFIG, 13)
    # Ten of each of two classes are two steps of 13.
    one, other = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert "pseudo_label/balance" not in scalars.of_step({}, {"classes": one})
    values = scalars.of_step({}, {"classes": other})
    assert values["pseudo_label/balance"] == pytest.approx(1.0)
    values = scalars.of_step({}, {"classes": other})
    assert values["pseudo_label/balance"] == pytest.approx(0.5)
    np.testing.assert_array_equal(scalars.classes, other)


def test_divergence():
    assert monitor.divergence(np.full(7, 1 / 7)) == pytest.approx(0)
    assert monitor.divergence([1.0, 0, 0, 0]) == pytest.approx(np.log(4))
    assert monitor.divergence([0.5, 0.5, 0, 0]) == pytest.approx(np.log(2))


def test_a_finding_is_told_once():
    scalars = monitor.Scalars(CONFIG, 16)
    for step in range(1, 11):
        scalars.keep(step, {"pseudo_label/mask_rate": 0.0})
    assert [f.name for f in scalars.findings(6)] == ["no_pseudo_labels"]
    assert scalars.findings(6) == []


def test_speed(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(monitor.time, "monotonic", lambda: now[0])
    speed = monitor.Speed(images=50)
    assert speed.measure(1, 3.0) == {}  # start-up
    now[0] += 10
    with speed.paused():
        now[0] += 5
    assert speed.measure(11, 5.0) == {
        "speed/images_per_second": 50.0,
        "speed/input_wait": 0.2,
    }
    now[0] += 1
    assert speed.measure(12, None) == {"speed/images_per_second": 50.0}


def test_a_profile_of_steps_that_are_done(tmp_path, capsys):
    profile = monitor.Profile("2:3", tmp_path, done=4)
    assert "4 steps are done already" in capsys.readouterr().err
    assert profile.until_next(4) > 2**31
    profile.at(4)
    profile.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["5", "5:", ":5", "a:b", "5:0", "-1:5"])
def test_a_profile_flag_that_is_wrong(value):
    with pytest.raises(InputError, match="must be START:COUNT"):
        runs.config("unused", profile=value)


def test_a_profile_beyond_the_end():
    with pytest.raises(InputError, match="ends after --steps=6"):
        runs.config("unused", profile="5:2")


@pytest.mark.slow
def test_profile(tmp_path):
    runs.fit(tmp_path / "run", profile="2:3", algorithm="supervised")
    (trace_file,) = (tmp_path / "run" / "tensorboard" / "plugins").rglob(
        "*.xplane.pb"
    )
    assert trace_file.stat().st_size > 1000


def test_divergence_from_a_prior():
    prior = [0.6, 0.3, 0.1]
    assert monitor.divergence(prior, prior) == pytest.approx(0)
    assert monitor.divergence([1.0, 0, 0], prior) == pytest.approx(
        np.log(1 / 0.6)
    )


def test_quartile_of_confidences():
    shares = np.zeros(20)
    shares[[2, 12, 19]] = 0.5, 0.3, 0.2  # from 0.1, 0.6 and 0.95 on
    assert monitor.quartile(shares) == pytest.approx(0.6)
    shares[[2, 12, 19]] = 0.75, 0.0, 0.25
    assert monitor.quartile(shares.astype(np.float32)) == pytest.approx(0.95)
    shares[[2, 19]] = 0.76, 0.24
    assert monitor.quartile(shares) == pytest.approx(0.1)
    values = monitor.Scalars(CONFIG, 16).of_step({}, {"confidences": shares})
    assert values == {diagnosis.QUARTILE: pytest.approx(0.1)}


def test_unequal_labels_are_named_once_at_the_start():
    for prior, finding in ((None, True), ((0.75, 0.25), False)):
        classes = diagnosis.Classes(("cat", "dog"), (9, 3), prior)
        scalars = monitor.Scalars(CONFIG, 20, classes)
        names = [each.name for each in scalars.findings(0)]
        assert names == ["unequal_labels"] * finding
        # Where the prior has their shares, it is a remark.
        line = "classes have from 3 (dog) to 9 (cat) labeled images"
        assert scalars.imbalance().startswith(line) != finding
        assert scalars.findings(0) == []
    assert monitor.Scalars(CONFIG, 20).imbalance() == ""


def test_advice_of_a_session_is_that_of_the_flags_as_given():
    rising = {100 * n: n / 10 for n in range(1, 9)}
    given = runs.config(
        "unused", steps=None, minutes=10.0, measured_steps=1000,
        schedule="cooldown",
    )  # fmt: skip
    scalars = monitor.Scalars(given.with_durations(1), 20)
    scalars.values["test/ema_top1"] = rising
    (finding,) = scalars.findings(1000, given, 2000)
    assert "--extend_minutes=10" in finding.turn


def test_shares_of_the_classes():
    classes = diagnosis.Classes(("cat", "dog"), (3, 1), (0.75, 0.25))
    scalars = monitor.Scalars(CONFIG, 20, classes)
    shares = np.array([0.75, 0.25])
    values = scalars.of_step({}, {"classes": shares, "predicted": shares})
    assert values["class_share/cat"] == 0.75
    assert values["class_share/dog"] == 0.25
    assert values["alignment/divergence"] == pytest.approx(0)
    assert values["pseudo_label/balance"] < 0.9
    # A method's own diagnostics may lack those that are used.
    assert "class_used/cat" not in values
    scalars = monitor.Scalars(CONFIG, 10, classes)
    for used in (0.5, 0.25):
        values = scalars.of_step(
            {}, {"classes": shares, "used": np.array([used, 0.0])}
        )
    assert values["class_used/cat"] == 0.375  # the window has two steps of 10
    assert values["class_used/dog"] == 0
    many = diagnosis.Classes(tuple(map(str, range(101))), (1,) * 101)
    scalars = monitor.Scalars(CONFIG, 2000, many)
    values = scalars.of_step({}, {"classes": np.full(101, 1 / 101)})
    assert [*values] == ["pseudo_label/balance"]
