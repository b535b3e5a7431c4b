"""Same question, same bytes: whatever a machine's leftovers are.

A small run, as a command, under a list of hostile environments: results.json
and the last checkpoint are those of a clean one to the byte, or the command
ends with one line that names the variable. Environments that should change
nothing are tried together; where that fails, one by one.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import PIL.Image
import pytest

from tests import runs

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOBODY, UNKNOWN = 65534, 54321  # a user without files; one without a name


def keras_json(**content):
    """A ~/.keras/keras.json."""
    return {
        "floatx": "float32",
        "epsilon": 1e-7,
        "backend": "tensorflow",
        "image_data_format": "channels_last",
    } | content


# Tried together, of two for one key the last counts.
LEFTOVERS = {
    "channels_first": {"image_data_format": "channels_first"},
    "float64": {"floatx": "float64"},
    "float16": {"floatx": "float16"},
    "epsilon": {"epsilon": 0.01},
    "torch": {"backend": "torch"},
}
# Group → environment variables that must change nothing; None: not set.
HARMLESS = {
    "tensorflow": {
        "TF_ENABLE_ONEDNN_OPTS": "0",
        "TF_DETERMINISTIC_OPS": "1",
        "TF_NUM_INTEROP_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "TF_CPP_MIN_LOG_LEVEL": "0",
        "KERAS_BACKEND": "",
    },
    "python": {
        "PYTHONHASHSEED": "1",
        "PYTHONOPTIMIZE": "2",
        "PYTHONWARNINGS": "error",
        "PYTHONIOENCODING": "ascii",
        "PYTHONUTF8": "0",
        "LC_ALL": "C",
        "TZ": "Asia/Kathmandu",
        "TMPDIR": "/nowhere",
        "MPLBACKEND": "module://nowhere",
        "TFDS_DATA_DIR": "/nowhere",
        "HOME": None,
    },
}
# The same way a run is refused: by one line that begins with the name.
REFUSED = {
    "TF_USE_LEGACY_KERAS": "1",
    "KERAS_BACKEND": "jax",
    "TF_XLA_FLAGS": "--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit",
    "XLA_FLAGS": "--xla_cpu_enable_fast_math=true",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    "TF_SET_ONEDNN_FPMATH_MODE": "BF16",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "NVIDIA_TF32_OVERRIDE": "0",
    "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS": "1",
    "TF_NUM_INTRAOP_THREADS": "1000",
}


def environment(home, **changes):
    """A clean machine's, with changes; None: without the variable."""
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(ROOT),
    }
    variables |= changes
    return {
        name: value for name, value in variables.items() if value is not None
    }


def command(name, *flags, env, words=(), **process):
    """A command, started by `words` where there are any."""
    start = [*words, sys.executable, "-m", f"simmatch_tf.{name}"]
    return subprocess.run(
        [*start, *map(str, flags)],
        env=env,
        capture_output=True,
        **{"cwd": "/", **process},
    )


def content(workdir):
    """What two runs must have in common, byte for byte."""
    *_, last = sorted((workdir / "checkpoints").glob("*.data-*"))
    return (workdir / "results.json").read_bytes(), last.read_bytes()


@pytest.fixture(scope="module")
def folder():
    """One that other users may enter, too."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="simmatch-bytes-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def clean(folder):
    """A run on a clean machine: its folder, and what it printed."""
    home = folder / "home"
    home.mkdir()
    workdir = folder / "clean"
    env = environment(home, XDG_CACHE_HOME=str(folder / "cache"))
    done = command("train", *runs.argv(workdir, baselines=True), env=env)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(content(workdir)[0])["baselines"]
    return workdir, done


def train(folder, env, user=None, **process):
    """A run's content in some environment; `user`: whose its folder is."""
    parent = pathlib.Path(tempfile.mkdtemp(dir=folder))
    if user is not None:
        os.chown(parent, user, user)
    else:  # a cache of its own: baselines are measured in this environment
        env = {"XDG_CACHE_HOME": str(parent / "cache"), **env}
    flags = runs.argv(parent / "run", baselines=True)
    done = command("train", *flags, env=env, **process)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return content(parent / "run")


def home_with(folder, **changes):
    home = pathlib.Path(tempfile.mkdtemp(dir=folder))
    (home / ".keras").mkdir()
    text = json.dumps(keras_json(**changes))
    (home / ".keras" / "keras.json").write_text(text)
    return home


@pytest.mark.slow
def test_keras_json(folder, clean):
    wanted = content(clean[0])
    together = {k: v for some in LEFTOVERS.values() for k, v in some.items()}
    home = home_with(folder, **together)
    if train(folder, environment(home)) == wanted:
        return
    wrong = [
        name
        for name, changes in LEFTOVERS.items()
        if train(folder, environment(home_with(folder, **changes))) != wanted
    ]
    raise AssertionError(f"another result with {wrong or 'all of them'}")


@pytest.mark.slow
def test_keras_home(folder, clean):
    home = home_with(folder, image_data_format="channels_first")
    env = environment(folder / "home", KERAS_HOME=str(home / ".keras"))
    assert train(folder, env) == content(clean[0])


@pytest.mark.slow
@pytest.mark.parametrize("group", HARMLESS)
def test_variables_that_change_nothing(group, folder, clean):
    wanted, variables = content(clean[0]), HARMLESS[group]
    home = folder / "home"
    if train(folder, environment(home, **variables)) == wanted:
        return
    wrong = [
        name
        for name, value in variables.items()
        if train(folder, environment(home, **{name: value})) != wanted
    ]
    raise AssertionError(f"another result with {wrong or 'all of them'}")


def test_variables_that_are_refused(tmp_path):
    for name, value in REFUSED.items():
        env = environment(tmp_path, **{name: value})
        done = command("train", *runs.argv(tmp_path / "run"), env=env)
        lines = done.stderr.decode().splitlines()
        assert done.returncode == 1 and not done.stdout
        assert len(lines) == 1 and lines[0].startswith(
            f"error: {name}={value}: "
        )
        assert not (tmp_path / "run").exists()


def as_user(user):
    """The words that start a command as another user.

    Such a user may read all files: this Python may lie in root's own home.
    """
    words = [
        "setpriv",
        f"--reuid={user}",
        f"--regid={user}",
        "--clear-groups",
        "--inh-caps=+dac_read_search",
        "--ambient-caps=+dac_read_search",
    ]
    try:
        subprocess.run([*words, "true"], check=True, capture_output=True)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("needs root, and setpriv, to become another user")
    return words


@pytest.mark.slow
@pytest.mark.parametrize(
    ("user", "has_home"),
    [(NOBODY, True), (UNKNOWN, False)],
    ids=["read-only home", "no home, unknown user"],
)
def test_users(user, has_home, folder, clean):
    """With another umask, too: files that nobody else can read."""
    words = as_user(user)
    home = pathlib.Path(tempfile.mkdtemp(dir=folder))
    home.chmod(0o555)  # root's own
    env = environment(home if has_home else None)
    if not has_home:
        del env["HOME"]
    contents = train(folder, env, words=words, user=user, umask=0o077)
    assert contents == content(clean[0])
    # What the user keeps has been lost, and no more.
    assert not list(home.iterdir())


@pytest.mark.slow
def test_another_working_directory(folder, clean):
    """Even one that has files of the libraries' names."""
    place = pathlib.Path(tempfile.mkdtemp(dir=folder))
    (place / "keras.json").write_text("{}")
    (place / "tensorflow_datasets").mkdir()
    env = environment(folder / "home")
    assert train(folder, env, cwd=place) == content(clean[0])


@pytest.mark.slow
def test_what_is_compared_would_show_a_difference(folder, clean):
    """Plain kernels differ in the last bits; a seed in all."""
    wanted = content(clean[0])
    env = environment(folder / "home", SIMMATCH_TF_ONEDNN="0")
    assert train(folder, env)[1] != wanted[1]
    changed = {**json.loads(wanted[0]), "loss": 0.0}
    assert json.dumps(changed).encode() != wanted[0]


@pytest.mark.slow
def test_commands_behind_training(folder, clean):
    """evaluate, predict and export with the worst home there is."""
    workdir, _ = clean
    images = folder / "images"
    images.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, [8, 8])
        image = PIL.Image.fromarray(pixels.astype(np.uint8))
        image.save(images / f"{number}.png")
    outputs = []
    for home in (
        folder / "home",
        home_with(folder, image_data_format="channels_first", floatx="float16"),
    ):
        out = pathlib.Path(tempfile.mkdtemp(dir=folder))
        for name, *words in (
            ("evaluate", f"--workdir={workdir}", f"--output={out}/e.json"),
            ("predict", f"--model={workdir}", f"--images={images}",
             "--explain", f"--output={out}/p.jsonl"),
            ("export", f"--workdir={workdir}", f"--output={out}/export"),
        ):  # fmt: skip
            done = command(name, *words, env=environment(home))
            assert done.returncode == 0, done.stderr.decode()
        files = [out / "e.json", out / "p.jsonl"]
        files += sorted((out / "export").glob("*/variables/*.data*"))
        assert len(files) == 3
        outputs.append([file.read_bytes() for file in files])
    assert outputs[0] == outputs[1]


@pytest.mark.slow
def test_no_noise(clean):
    """No line of TensorFlow's own; every wait says what it is for."""
    _, done = clean
    lines = done.stderr.decode().splitlines()
    assert not [line for line in lines if ".cc:" in line or "absl" in line]
    assert lines[:3] == [
        "loading TensorFlow",
        "reading the images of digits",
        "building wrn_10_1",
    ]
    assert lines[3].startswith("simmatch on digits: ")
    assert lines[4] == "compiling the step"


def cafe(root):
    """A folder of images with a class that ASCII cannot say."""
    rng = np.random.default_rng(0)
    for part in ("labeled/café", "labeled/tea", "unlabeled", "test/café",
                 "test/tea"):  # fmt: skip
        (root / part).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, [8, 8, 3]).astype(np.uint8)
            image = PIL.Image.fromarray(pixels)
            image.save(root / part / f"{number}.png")


@pytest.mark.slow
def test_output_never_fails_for_its_encoding(folder):
    root, workdir = folder / "photos", folder / "café"
    cafe(root)
    narrow = {
        "ascii": {"PYTHONIOENCODING": "ascii"},
        "latin": {"PYTHONIOENCODING": "latin-1"},
        "locale": {"LC_ALL": "C", "PYTHONUTF8": "0"},
    }
    words = runs.argv(
        workdir, dataset="folder", data_dir=root, labels=None, steps=2,
        batch_size=2, unlabeled_ratio=1, eval_every=2,
    )  # fmt: skip
    home = folder / "cafe-home"
    home.mkdir()
    done = command("train", *words, env=environment(home, **narrow["locale"]))
    assert done.returncode == 0, done.stderr.decode()
    result = json.loads((workdir / "results.json").read_text("utf-8"))
    assert result["class_names"] == ["café", "tea"]
    evaluations = []
    for name, variables in {"utf-8": {}, **narrow}.items():
        env = environment(home, **variables)
        done = command("evaluate", f"--workdir={workdir}", env=env)
        assert done.returncode == 0, done.stderr.decode()
        said = {"utf-8": "café".encode(), "latin": "café".encode("latin-1")}
        assert said.get(name, rb"caf\xe9") in done.stdout
        evaluations.append((workdir / "evaluation.json").read_bytes())
        (workdir / "evaluation.json").unlink()
    assert len(set(evaluations)) == 1
    env = environment(home, **narrow["ascii"])
    done = command("train", *words, "--describe", env=env)
    assert done.returncode == 0 and rb"\xd7" in done.stdout
