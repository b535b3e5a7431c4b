"""A finished run is made longer: the bits, the refusals, and every kill."""

import dataclasses
import json
import os
import shutil

import pytest

import simmatch_tf
from simmatch_tf import io
from simmatch_tf.algorithms import supervised
from simmatch_tf.flags.errors import InputError
from simmatch_tf.training import checkpoints, duration, extension, loop
from simmatch_tf.training import workdir as workdir_lib
from tests import runs
from tests.training import test_loop

# The cool-down of 6 steps begins after 4, that of 10 after 7; neither is a
# multiple of 5, and `keep` would have removed it.
COOLED = {
    "schedule": "cooldown",
    "cooldown": 0.34,
    "checkpoint_every": 5,
    "keep": 1,
    "eval_every": 3,
}


def files(folder):
    """The content of all files of a run that others read."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
        and path.name != "lock"
        and "extension" not in path.relative_to(folder).parts
    }


@pytest.fixture(scope="module")
def cooled(tmp_path_factory):
    """A finished run of 6 steps that can be extended; not to be written to."""
    workdir = tmp_path_factory.mktemp("cooled") / "run"
    runs.fit(workdir, **COOLED)
    return workdir


@pytest.mark.slow
def test_an_extended_run_is_the_one_planned_that_long(cooled, tmp_path, capsys):
    long = tmp_path / "long"
    runs.fit(long, steps=10, **COOLED)
    assert checkpoints.steps_in(cooled / "cooldown") == [4]
    extended = tmp_path / "extended"
    shutil.copytree(cooled, extended)
    (extended / "evaluation.json").write_text("{}")
    result = runs.fit(extended, extend_steps=4, **COOLED)
    assert result.steps == 10
    test_loop.assert_same_run(long, extended, 10)
    assert checkpoints.steps_in(extended / "checkpoints") == [10]
    assert checkpoints.steps_in(extended / "cooldown") == [7]
    assert not (extended / "extension").exists()
    assert not (extended / "evaluation.json").exists()  # of the old weights
    sessions = json.loads((extended / "timing.json").read_text())
    steps = [(each["first_step"], each["last_step"]) for each in sessions]
    assert steps == [(1, 6), (5, 10)]
    models = [simmatch_tf.load(path) for path in (long, extended)]
    for own, other in zip(*(model.weights for model in models), strict=True):
        assert (own.numpy() == other.numpy()).all()
    # The same command shows it; its flagfile starts the same run elsewhere.
    assert runs.fit(extended, **COOLED) == result
    config = simmatch_tf.Config.from_flagfile(extended / "flags.cfg")
    assert config.extended_steps == 10 and config.steps == 6
    assert config.extend_steps is None
    # And it can be extended again.
    longer = tmp_path / "longer"
    again = simmatch_tf.Config.from_flagfile(
        extended / "flags.cfg", workdir=longer
    )
    simmatch_tf.fit(again)
    test_loop.assert_same_run(long, longer, 10)
    assert runs.fit(extended, extend_steps=2, **COOLED).steps == 12
    longest = tmp_path / "longest"
    runs.fit(longest, steps=12, **COOLED)
    test_loop.assert_same_run(longest, extended, 12)


@pytest.mark.slow
def test_killed_in_an_extension(cooled, tmp_path, monkeypatch, capsys):
    """The run stays as it was, and a plain command goes on."""
    workdir, long = tmp_path / "run", tmp_path / "long"
    runs.fit(long, steps=10, **COOLED)
    shutil.copytree(cooled, workdir)
    before = files(workdir)
    evaluate = loop._Run._evaluate

    def die(self, step):
        if step == 9:
            raise RuntimeError("killed")
        evaluate(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_evaluate", die)
        with pytest.raises(RuntimeError, match="killed"):
            runs.fit(workdir, extend_steps=4, **{**COOLED, "keep": 3})
    assert files(workdir) == before
    assert simmatch_tf.load(workdir).class_names  # of the run as it was
    with pytest.raises(
        InputError,
        match=r"--extend_steps=5: the run in --workdir=.* is being extended by "
        "--extend_steps=4; start it without --extend_steps=5",
    ):
        runs.fit(workdir, extend_steps=5, **COOLED)
    assert runs.fit(workdir, **COOLED).steps == 10
    assert "going on with the extension" in capsys.readouterr().err
    assert runs.began_after(workdir) == 5
    test_loop.assert_same_run(long, workdir, 10)


@pytest.mark.slow
def test_extended_by_minutes(cooled, tmp_path, monkeypatch):
    monkeypatch.setattr(
        duration, "plan", lambda *a, **k: duration.Plan(k["start"] + 6, 3, 5)
    )
    workdir, long = tmp_path / "run", tmp_path / "long"
    shutil.copytree(cooled, workdir)
    assert runs.fit(workdir, extend_minutes=1.0, **COOLED).steps == 10
    runs.fit(long, steps=10, **COOLED)
    test_loop.assert_same_run(long, workdir, 10)
    # Not by fewer steps than it has: then it would be shorter.
    monkeypatch.setattr(
        duration, "plan", lambda *a, **k: duration.Plan(k["start"] + 3, 3, 5)
    )
    before = files(workdir)
    with pytest.raises(InputError, match="the 4 steps from before the cool-do"):
        runs.fit(workdir, extend_minutes=1.0, **COOLED)
    assert files(workdir) == before
    assert runs.fit(workdir, **COOLED).steps == 10


# ------------------------------------------------------------- no training --


def written(folder, *, finished=True, cooldown=True):
    """The files of a run, as `extension` sees them."""
    run = workdir_lib.Workdir(folder)
    for path in (run.checkpoints, run.cooldown, run.tensorboard):
        path.mkdir(parents=True)
    steps = {run.checkpoints: 6} | ({run.cooldown: 4} if cooldown else {})
    for path, step in steps.items():
        (path / f"step_{step:08d}.index").write_text(f"old {step}")
    (run.tensorboard / "events.1").write_text("old")
    run.write_flags(config_of(run))
    for path in (run.model, run.evaluation, run.split, run.data):
        path.write_text("old")
    io.write_json(run.timing, [{"first_step": 1, "last_step": 6}])
    if finished:
        path = folder.parent / "result.json"
        io.write_json(run.results, result(6))
    return run


def result(steps):
    from tests.training import test_workdir

    return dataclasses.asdict(
        dataclasses.replace(test_workdir.RESULT, steps=steps)
    )


def config_of(run, **changes):
    return runs.config(run.path, **{**COOLED, **changes})


def ended(run):
    """The run with an extension that has just come to its end."""
    own, config = extension.target(run, config_of(run, extend_steps=4))
    assert own.extends is run and config.extended_steps == 10
    own.write_flags(config)
    shutil.rmtree(own.checkpoints)
    for path, step in ((own.checkpoints, 10), (own.cooldown, 7)):
        path.mkdir()
        (path / f"step_{step:08d}.index").write_text(f"new {step}")
    (own.tensorboard / "plugins").mkdir(parents=True)
    (own.tensorboard / "events.2").write_text("new")
    (own.tensorboard / "plugins" / "x").write_text("new")
    own.model.write_text("new")
    io.write_json(own.results, result(10))
    return own


def assert_promoted(run):
    assert not (run.path / "extension").exists()
    assert not run.evaluation.exists()
    assert run.model.read_text() == "new"
    assert json.loads(run.results.read_text())["steps"] == 10
    assert checkpoints.steps_in(run.checkpoints) == [10]
    assert checkpoints.steps_in(run.cooldown) == [7]
    names = {path.name for path in run.tensorboard.rglob("*")}
    assert names == {"events.1", "events.2", "plugins", "x"}
    config = run.read_config()
    assert (config.extended_steps, config.extend_steps) == (10, None)


def test_an_extension_takes_the_run_s_place(tmp_path):
    run = written(tmp_path / "run")
    before = files(run.path)
    ended(run)
    assert files(run.path) == before
    # Whatever was asked: this has just ended, and is not extended once more.
    target, _ = extension.target(run, config_of(run, extend_steps=4))
    assert target is run
    assert_promoted(run)
    assert extension.target(run, config_of(run)) == (run, config_of(run))


def test_killed_while_it_takes_the_run_s_place(tmp_path, monkeypatch):
    """At each change of a file; never a result beside other weights."""
    replace, rmtree, unlink = os.replace, shutil.rmtree, type(tmp_path).unlink
    for kill in range(1, 100):
        run, left = written(tmp_path / str(kill)), [kill]
        ended(run)

        def dying(act, left=left):
            def change(*arguments, **words):
                left[0] -= 1
                if not left[0]:
                    raise KeyboardInterrupt
                return act(*arguments, **words)

            return change

        with monkeypatch.context() as patch:
            patch.setattr(extension.os, "replace", dying(replace))
            patch.setattr(extension.shutil, "rmtree", dying(rmtree))
            patch.setattr(type(tmp_path), "unlink", dying(unlink))
            try:
                extension.promote(run)
            except KeyboardInterrupt:
                killed = True
            else:
                killed = False
        if run.results.is_file() and killed:
            steps = json.loads(run.results.read_text())["steps"]
            new = steps == 10
            assert (run.model.read_text() == "new") == new
            assert checkpoints.steps_in(run.checkpoints) == [steps]
        extension.target(run, config_of(run))
        assert_promoted(run)
        if not killed:
            break
    assert kill > 10


def test_one_that_was_killed_before_its_first_step_is_dropped(tmp_path):
    run = written(tmp_path / "run")
    own, _ = extension.target(run, config_of(run, extend_minutes=2.0))
    assert own.path.is_dir() and not own.flagfile.exists()
    assert checkpoints.steps_in(own.checkpoints) == [4]
    (own.path / "junk").write_text("")
    again, config = extension.target(run, config_of(run, extend_steps=1))
    assert again.path == own.path and not (own.path / "junk").exists()
    assert config.extended_steps == 7
    assert extension.target(run, config_of(run)) == (run, config_of(run))
    assert not own.path.exists()


def test_what_cannot_be_extended(tmp_path):
    run = written(tmp_path / "a", finished=False)
    longer = config_of(run, extend_steps=3)
    with pytest.raises(
        InputError, match="--extend_steps=3: the run in .* has not finished; st"
    ):
        extension.target(run, longer)
    run = workdir_lib.Workdir(tmp_path / "b")
    with pytest.raises(InputError, match="in --workdir=.*b has not begun; sta"):
        extension.target(run, config_of(run, extend_minutes=3.0))
    run = written(tmp_path / "c", cooldown=False)
    with pytest.raises(
        InputError, match="cooldown has no checkpoint from before the cool-dow"
    ):
        extension.target(run, config_of(run, extend_steps=3))
    for changes, message in (
        (
            {"extend_steps": 3, "schedule": "constant", "cooldown": 0.2},
            "--extend_steps=3: only a run of --schedule=cooldown can be "
            "extended, and this one has --schedule=constant",
        ),
        (
            {"extend_minutes": 3.0, "extend_steps": 3},
            "--extend_minutes=3.0 and --extend_steps=3: give one of the two",
        ),
        (
            {"extend_steps": 3, "overwrite": True},
            "--extend_steps=3 and --overwrite: one of them",
        ),
        ({"extend_steps": 0}, "--extend_steps=0: must be at least 1"),
        ({"extend_minutes": 0.0}, "--extend_minutes=0.0: must be in"),
    ):
        with pytest.raises(InputError, match=message):
            config_of(run, **changes)


def test_a_method_that_reads_the_length_is_refused(tmp_path, monkeypatch):
    def build_state(self):
        self.half = self.config.steps // 2

    monkeypatch.setattr(supervised.Supervised, "build_state", build_state)
    with pytest.raises(
        InputError, match="--schedule=cooldown: the method reads config.st"
    ):
        runs.fit(tmp_path, algorithm="supervised", **COOLED)
    assert not (tmp_path / "flags.cfg").exists()
