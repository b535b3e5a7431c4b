"""The tools run, and print their measurements."""

import importlib.util
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest
from absl import flags

import simmatch_tf
from simmatch_tf import train
from simmatch_tf.flags.errors import InputError
from tests import runs

TOOLS = pathlib.Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch):
    """Loads a tool by name; removes its flags after the test."""
    before = set(flags.FLAGS)

    def load(name, *words):
        (path,) = TOOLS.rglob(f"{name}.py")
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [name, *words])
        return module

    yield load
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()


@pytest.mark.slow
def test_benchmark_step(tool, tmp_path, capsys):
    output = tmp_path / "x.json"
    words = runs.argv(tmp_path / "run")
    tool(
        "benchmark_step", "--rounds=2", "--noallocator", *words,
        f"--output={output}",
    ).main()  # fmt: skip
    medians = json.loads(output.read_text())["median_seconds"]
    assert set(medians) == {
        "step",
        "step with guard",
        "student forward + backward",
        "matching",
        "losses",
        "optimizer",
        "EMA",
        "memory",
        "input (in parallel)",
    }
    assert all(seconds > 0 for seconds in medians.values())
    assert "matching, losses, EMA, memory" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    loop = json.loads(output.read_text())["loop"]
    assert 0.3 < loop["ratio"] < 3 and loop["checkpoint"] > 0


def test_the_source_for_tuning_has_no_test_image(tool):
    from simmatch_tf.data.sources import digits

    config = runs.config("none")
    source = tool("tune").source(config, 200)
    full = digits.load(8)
    assert len(source.train) == 1200 and len(source.test) == 200
    test = {image.tobytes() for image in full.test.images}
    seen = [i.tobytes() for i in source.train.images]
    held = [i.tobytes() for i in source.test.images]
    train = sorted(i.tobytes() for i in full.train.images)
    assert sorted(seen + held) == train
    assert len(test & set(held)) <= 2  # images that are equal by chance


DIGITS = "--flagfile=configs/digits_40.cfg"


@pytest.mark.slow
def test_benchmark_summaries(tool, tmp_path, capsys):
    words = [
        word
        for word in runs.argv(None, steps=60)
        if not word.startswith(("--workdir", "--log_every"))
    ]
    tool(
        "benchmark_summaries", "--rounds=1", *words,
        f"--output={tmp_path / 'x.json'}",
    ).main()  # fmt: skip
    (timings,) = json.loads((tmp_path / "x.json").read_text())["seconds"]
    assert set(timings) == {"without", "with summaries"}
    for parts in timings.values():
        assert all(seconds > 0 for seconds in parts.values())
    out = capsys.readouterr().out
    assert "with summaries, s" in out and "median" in out


@pytest.mark.parametrize(
    "name",
    [
        "benchmark_matching",
        "benchmark_pytorch",
        "benchmark_step",
        "benchmark_summaries",
        "compare_devices",
    ],
)
def test_help_of_measuring_tools(tool, name, capsys):
    with pytest.raises(SystemExit) as stop:
        tool(name, "--help").main()
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert (
        f"python tools/benchmarks/{name}.py" in out
        and "--output: JSON file to write." in out
    )
    assert "Internal" not in out


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("benchmark_matching", ["--rounds=0"], "--rounds=0: .*positive"),
        ("benchmark_matching", ["--largest", "5"], "13000"),
        ("benchmark_matching", ["extra"], "extra: is no flag of this tool"),
        ("benchmark_matching", ["--plot=a.xyz"], "must be a .png file"),
        ("benchmark_matching", ["--output=no/a.json"], "must be a .json file"),
        ("benchmark_pytorch", [DIGITS, "--shape=3,a,3"], "--shape=3,a,3: must"),
        ("benchmark_pytorch", [DIGITS, "--competitors="], "--competitors=: "),
        ("benchmark_pytorch", [DIGITS, "--devices=2"], "--devices=2: one dev"),
        (
            "benchmark_pytorch",
            [DIGITS, "--slots=3", "--classes=4"],
            "--slots=3",
        ),
        (
            "benchmark_pytorch",
            [DIGITS, "--backbone=keras_cv:mit_b0", "--image_size=64"],
            "wrn_",
        ),
        ("benchmark_pytorch", ["--flagfile=none.cfg"], "none.cfg: no such"),
        ("benchmark_step", [DIGITS, "--rounds=0"], "--rounds=0: .*positive"),
        (
            "benchmark_step",
            ["--flagfile=configs/digits_40_supervised.cfg"],
            "simmatch",
        ),
        ("benchmark_step", [DIGITS, "--devices=2"], "--devices=2: one device"),
        ("benchmark_summaries", [DIGITS, "--rounds=0"], "--rounds=0: .*pos"),
        (
            "benchmark_summaries",
            [DIGITS, "--nosummaries"],
            "measures the default",
        ),
        ("compare_devices", [DIGITS, "--batch_size=6"], "must divide by 4"),
        ("compare_devices", [DIGITS, "--devices=3"], "is this tool's own"),
        ("tune", [DIGITS, "--runs=0"], "--runs=0: 0 is not a positive"),
        ("tune", [DIGITS, "--runs", "0"], "--runs=0: 0 is not a positive"),
        ("tune", [DIGITS, "--first=-1"], "--first=-1: -1 is not a non-neg"),
        ("tune", [DIGITS, "--set_aside=1400"], "--set_aside=1400: .*has 1400"),
        ("tune", [DIGITS, "--seed=1"], "--seed=1: is this tool's own"),
        ("tune", [DIGITS, "--bogus=1"], "bogus"),
    ],
    ids=lambda x: x if isinstance(x, str) else x[-1],
)
def test_bad_flags_of_measuring_tools(tool, name, words, message):
    with pytest.raises(SystemExit, match=f"(?s)error: .*{message}"):
        tool(name, *words).main()


def test_every_flag_is_drawn_or_left_out_with_a_reason(tool):
    module = tool("flag_pairs")
    values = module.values()
    known = set(simmatch_tf.Config.declared())
    assert values.keys() | module.LEFT_OUT.keys() == known
    assert not values.keys() & module.LEFT_OUT.keys()
    assert set(module.VALUES) <= known
    assert all(len(words) for words in values.values())
    # The same seed draws the same, and in time each flag.
    places = {"tmp": "t", "folder": "f"}
    draws = [module.draw(random.Random(f"0 {n}"), places) for n in range(600)]
    assert draws[7] == module.draw(random.Random("0 7"), places)
    names = {word.split("=")[0].removeprefix("--") for d in draws for word in d}
    names |= {name.removeprefix("no") for name in names}
    assert len(values.keys() - names) < 3


@pytest.mark.slow
def test_pairs_of_flags(tmp_path):
    """A few: each trains as evaluate measures it, or is refused."""
    output = tmp_path / "draws.json"
    ran = subprocess.run(
        [
            *(sys.executable, TOOLS / "flag_pairs.py", "--draws=4"),
            *("--seed=1", f"--output={output}"),
        ],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    outcomes = [draw["outcome"] for draw in json.loads(output.read_text())]
    assert len(outcomes) == 4 and set(outcomes) <= {"trained", "refused"}


@pytest.mark.slow
def test_a_pair_that_fails_is_found(tool, tmp_path, monkeypatch):
    """Faults are planted in the output of the two commands."""
    module = tool("flag_pairs")
    result = {
        "top1": 0.5,
        "top5": 1.0,
        "student": {"last": {"top1": 0.5, "top5": 1.0}},
        "ema": {"last": {"top1": 0.5, "top5": 1.0}},
    }
    report = {
        "test_images": 4,
        "student": {"top1": 0.5, "top5": 1.0},
        "ema": {"top1": 0.25, "top5": 1.0},
    }
    (tmp_path / "results.json").write_text(json.dumps(result))
    (tmp_path / "evaluation.json").write_text(json.dumps(report))
    flags = tmp_path / "flags.cfg"
    flags.write_text("")
    assert module.different(tmp_path) == (
        "ema top1 is 0.5 in results.json and 0.25 by evaluate"
    )
    flags.write_text("--devices=2")  # one image may change sides
    assert not module.different(tmp_path)
    report["ema"]["top1"] = 0.0
    (tmp_path / "evaluation.json").write_text(json.dumps(report))
    assert "ema top1" in module.different(tmp_path)
    base = tmp_path / "base.cfg"
    base.write_text("\n".join(module.BASE))

    def outcome(command):
        monkeypatch.setattr(train, "main", command)
        number = len(list(tmp_path.glob("*.log")))
        drawn = module.Draw(number, ["--seed=1"])
        return module.run(drawn, tmp_path / f"run{number}", base, 3.0)

    def refuse(config):
        raise InputError("--seed=1: is too low")

    def inside(config):
        raise InputError("cannot be read ({{node Index}} must be a scalar)")

    def crash(config):
        raise KeyError(config.seed)

    def die(config):
        os.kill(os.getpid(), signal.SIGSEGV)

    def hang(config):
        time.sleep(60)

    verdict = outcome(refuse)
    assert verdict.outcome == "refused" and "is too low" in verdict.reason
    for command, reason in (
        (inside, "must be a scalar"),
        (crash, "KeyError: 1"),
        (die, "status -11"),
        (hang, "no end in 3 s"),
    ):
        verdict = outcome(command)
        assert verdict.outcome == "failed" and reason in verdict.reason


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "part"),
    [
        pytest.param("cifar", "RandAugment", marks=pytest.mark.slow),
        ("imagenet", "colors and blur"),
    ],
)
def test_benchmark_input(tmp_path, recipe, part):
    output = tmp_path / "x.json"
    process = subprocess.run(
        [
            sys.executable,
            TOOLS / "benchmarks" / "benchmark_input.py",
            f"--recipe={recipe}",
            "--images=2",
            "--rounds=1",
            f"--output={output}",
        ],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert f"{recipe}: " in process.stdout and "× Pillow" in process.stdout
    seconds = json.loads(output.read_text())[recipe]["median_seconds"]
    assert {"both views", "Pillow", part} <= set(seconds)
    assert all(value > 0 for value in seconds.values())


def test_pillow_views(tool):
    import io
    import random

    import numpy as np
    import PIL.Image

    module = tool("pillow_views")
    pixels = np.random.default_rng(0).integers(0, 256, [32, 32, 3])
    pixels = pixels.astype(np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).resize((90, 70)).save(file, "JPEG")
    for view, image, side in (
        (module.cifar, pixels, 32),
        (module.imagenet, file.getvalue(), 224),
    ):
        weak, strong = view(image, random.Random(1))
        assert weak.shape == strong.shape == (side, side, 3)
        assert weak.dtype == strong.dtype == np.uint8
        assert (weak != strong).any()
        again, _ = view(image, random.Random(1))
        np.testing.assert_array_equal(weak, again)


def test_photo_folder_can_be_trained_on(tool, tmp_path, monkeypatch):
    from simmatch_tf.data.sources import folder

    module = tool("make_photo_folder", str(tmp_path / "photos"))
    parts = {"labeled": 6, "unlabeled": 60, "test": 4}
    monkeypatch.setattr(module, "PARTS", parts)
    module.main()
    source = folder.load(str(tmp_path / "photos"), on_bad_image="error")
    assert source.class_names == ["flower", "temple"]
    assert source.train.labels.tolist() == [0] * 3 + [1] * 3 + [-1] * 60
    assert len(source.test) == 4
    assert set(source.train.orientations) == {1, 6}
    assert len({path.rpartition(".")[2] for path in source.train.paths}) > 3
    with pytest.raises(SystemExit, match="photos: exists already"):
        module.main()


def test_check_wheel(tool, tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        wheel.writestr("simmatch_tf/odd.py", "")
    with pytest.raises(SystemExit, match="missing .*unexpected .*odd.py"):
        tool("check_wheel", str(tmp_path / "x.whl")).main()


def test_benchmark_transfer(tool, tmp_path, finished_run, capsys):
    path = tmp_path / "a.json"
    tool(
        "benchmark_transfer", "size", "--images=400", "--width=30",
        "--classes=4", "--strengths=9", f"--json={path}",
    ).main()  # fmt: skip
    figures = json.loads(path.read_text())
    assert (
        figures["peak_mb"] > 100 and figures["longest"] >= figures["median"] > 0
    )
    assert figures["test"] > 0.5 and capsys.readouterr().out.count("Fit(") == 9
    tool(
        "benchmark_transfer", "warm", str(finished_run[0]), "digits",
        "--rounds=1", "--max_iter=8", f"--json={path}",
    ).main()  # fmt: skip
    figures = json.loads(path.read_text())
    assert figures["warm"]["iterations"] < figures["cold"]["iterations"]
    assert figures["ratio"] > 0 and "warm / cold:" in capsys.readouterr().out


def test_compare_devices_tells_runs_apart(tool, finished_run, tmp_path):
    """A run equals itself, and differs from an earlier step in all parts."""
    compare = tool("compare_devices").compare
    run, _ = finished_run
    same = compare(run, run)
    assert same.pop("masks") and same.pop("labels")
    assert set(same.values()) == {0.0}
    shutil.copytree(run, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("step_00000006*"):
        path.unlink()
    other = compare(run, tmp_path / "run")
    del other["masks"], other["labels"]
    assert min(other.values()) > 1e-3


@pytest.mark.parametrize("words", [[], ["--grey"], ["--search"]])
def test_neighbor_tasks_share_no_image(tmp_path, words):
    root, tasks = tmp_path / "all", tmp_path / "tasks"
    rng = np.random.default_rng(0)
    for part, count in (("labeled", 6), ("test", 3)):
        for name in "abcd":
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, [32, 32, 3], np.uint8)
                path = folder / f"{part}_{number}.png"
                PIL.Image.fromarray(pixels).save(path)
    subprocess.run(
        [
            sys.executable,
            str(TOOLS / "make_neighbor_task.py"),
            str(root),
            str(tasks),
            "--labels=2",
            *words,
        ],
        check=True,
        capture_output=True,
    )
    train = tasks / "source" / "train"
    assert [p.name for p in sorted(train.iterdir())] == ["a", "c"]
    assert len(list(train.rglob("*.png"))) == 12
    (target,) = tasks.glob("target*")
    images = {
        part: sorted(p.read_bytes() for p in (target / part).rglob("*.png"))
        for part in ("labeled", "unlabeled", "test")
    }
    # The search's test images were training images, which then are not there.
    left = 0 if "--search" in words else 4
    assert {part: len(each) for part, each in images.items()} == {
        "labeled": 4 if left else 0,
        "unlabeled": 2 * left,
        "test": 6 if left else 12,
    }
    every = sum(images.values(), [])
    assert len(set(every)) == len(every)
    sizes = set()
    for path in target.rglob("*.png"):
        with PIL.Image.open(path) as image:
            sizes.add(image.size)
    assert sizes == {(28, 28) if "--grey" in words else (32, 32)}
