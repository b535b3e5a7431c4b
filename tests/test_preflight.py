"""What is refused, and checked, before TensorFlow is imported."""

import os
import subprocess
import sys

import pytest

import simmatch_tf
from simmatch_tf import (
    preflight,
    terminal,
)
from simmatch_tf.flags.errors import InputError
from tests import runs


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KERAS_BACKEND", "torch"),
        ("TF_USE_LEGACY_KERAS", "True"),
        ("TF_XLA_FLAGS", "--tf_xla_auto_jit=2"),
        ("XLA_FLAGS", "--xla_cpu_enable_fast_math=true"),
        ("ONEDNN_DEFAULT_FPMATH_MODE", "BF16"),
        ("DNNL_DEFAULT_FPMATH_MODE", "any"),
        ("NVIDIA_TF32_OVERRIDE", "0"),
        ("TF_ONEDNN_ASSUME_FROZEN_WEIGHTS", "1"),
        ("TF_XLA_FLAGS", "/etc/xla.txt"),
        ("KERAS_NNX_ENABLED", "true"),
    ],
)
def test_a_variable_that_changes_every_number_is_refused(
    name, value, monkeypatch
):
    monkeypatch.setenv(name, value)
    for exact in (False, True):
        with pytest.raises(
            InputError, match=f"^{name}={value}: ".replace("-", "\\-")
        ):
            preflight.check_environment(exact=exact)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KERAS_BACKEND", ""),
        ("TF_USE_LEGACY_KERAS", "0"),
        ("TF_XLA_FLAGS", "--tf_xla_auto_jit=-1 --tf_xla_cpu_global_jit=false"),
        ("XLA_FLAGS", "--xla_gpu_cuda_data_dir=/usr/lib/cuda"),
        ("ONEDNN_DEFAULT_FPMATH_MODE", "strict"),
        ("NVIDIA_TF32_OVERRIDE", "1"),
        ("TF_NUM_INTRAOP_THREADS", "0"),
        ("TF_NUM_INTRAOP_THREADS", "many"),
    ],
)
def test_what_changes_nothing_is_not(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    preflight.check_environment()


def test_threads(monkeypatch):
    monkeypatch.setattr(preflight, "processors", lambda: 4)
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "4")
    preflight.check_environment()
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "2")
    with pytest.raises(InputError, match="processors, 4; .* taskset -c 0-1"):
        preflight.check_environment()
    preflight.check_environment(
        exact=False
    )  # labels need not be exact to the last bit


def test_fit_refuses_them_too(tmp_path, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    with pytest.raises(InputError, match="ONEDNN_MAX_CPU_ISA=SSE41"):
        runs.fit(tmp_path / "run")


def script(code, *words, **variables):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


_ANSWERS = """
import sys
from simmatch_tf import evaluate, export, export_pytorch, predict, report
from simmatch_tf import config, import_pytorch, experiment, train, transfer
from simmatch_tf.flags.errors import InputError

def answers(main, kind, part, *words):
    try:
        main(kind.from_argv(["x", *words]))
    except InputError as error:
        assert part in str(error), (main.__module__, part, error)
    else:
        sys.exit(f"{main.__module__}, {part}: goes on")
    for name in ("tensorflow", "keras"):
        assert name not in sys.modules, (main.__module__, part)
"""


def test_folders_and_files_are_checked_before_tensorflow(tmp_path):
    """All of it in one process, which never imports TensorFlow."""
    none, empty = tmp_path / "none", tmp_path / "empty"
    empty.mkdir()
    (empty / "flags.cfg").write_text("--labels=20\n--steps=6\n")
    gone = tmp_path / "gone"  # a run whose images are not there any more
    (gone / "checkpoints").mkdir(parents=True)
    (gone / "checkpoints" / "step_00000002.index").write_text("")
    (gone / "flags.cfg").write_text(
        f"--dataset=folder\n--data_dir={none}\n--steps=6\n"
    )
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "saved_model.pb").write_text("")
    unlabeled = tmp_path / "unlabeled_only"
    (unlabeled / "unlabeled").mkdir(parents=True)
    page, out = tmp_path / "p.html", tmp_path / "o.csv"
    cases = f"""
E, P, X = (evaluate.EvaluateConfig, predict.PredictConfig,
           export.ExportConfig)
C, T = config.Config, transfer.TransferConfig
run = ["--steps=6", "--workdir={tmp_path}/new"]
answers(train.main, C, "no such folder", "--dataset=folder",
        "--data_dir={none}", *run)
answers(train.main, C, "no folder labeled/", "--dataset=folder",
        "--data_dir={unlabeled}", *run)
answers(train.main, C, "no such file", "--labeled_list={none}", *run)
answers(train.main, C, "no such file", "--split_file={none}", *run)
answers(train.main, C, "no such file or folder", "--labels=20",
        "--init_from={none}", *run)
answers(train.main, C, "no checkpoint yet", "--labels=20",
        "--init_from={empty}", *run)
answers(evaluate.main, E, "no such folder", "--workdir={none}")
answers(evaluate.main, E, "no checkpoint yet", "--workdir={empty}")
answers(evaluate.main, E, "{none}: no such folder", "--workdir={gone}")
answers(evaluate.main, E, "no such file or folder", "--export={none}")
answers(evaluate.main, E, "is no export", "--export={bad}")
answers(predict.main, P, "no such file or folder", "--model={none}",
        "--images={tmp_path}", "--output={out}")
answers(predict.main, P, "no checkpoint yet", "--model={empty}",
        "--images={tmp_path}", "--output={out}")
answers(predict.main, P, "is no export", "--model={bad}",
        "--images={tmp_path}", "--output={out}")
answers(predict.main, P, "--images={none}", "--model={gone}",
        "--images={none}", "--output={out}")
answers(export.main, X, "no checkpoint yet", "--workdir={empty}",
        "--output={tmp_path}/e")
answers(export.main, X, "by --images", "--workdir={gone}",
        "--output={tmp_path}/e")
answers(export_pytorch.main, export_pytorch.ExportPytorchConfig,
        "no checkpoint yet", "--workdir={empty}", "--output={out}")
answers(report.main, report.ReportConfig, "{none}", "{none}",
        "--output={page}")
answers(transfer.main, T, "no checkpoint yet", "{empty}", "--datasets=digits",
        "--output={tmp_path}/t")
answers(transfer.main, T, "no folder labeled/",
        "keras_applications:ResNet50", "--datasets=folder",
        "--data_dir={unlabeled}", "--output={tmp_path}/t")
answers(import_pytorch.main, import_pytorch.ImportPytorchConfig, "no such file",
        "{none}", "--output={tmp_path}/e.keras")
answers(experiment.main, experiment.ExperimentConfig, "{none}", "{none}")
print("all answered")
"""
    assert script(_ANSWERS + cases) == "all answered\n"


_KERNELS = """
import os, sys
{first}
import simmatch_tf
simmatch_tf.fit
from tensorflow.python.util import _pywrap_util_port as port
from simmatch_tf import preflight
warnings = []
preflight.terminal.warn = lambda *_: warnings.append(1)
preflight.warn_of_kernels()
print(port.IsMklEnabled(), os.environ.get("TF_ENABLE_ONEDNN_OPTS"),
      bool(warnings))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "first", "printed"),
    [
        ("1", "", "True 0 False"),  # the user's variable stays, and waits
        ("0", "", "False 0 False"),
        ("1", "import tensorflow", "False 0 True"),  # too late: a warning
    ],
)
def test_kernels(own, first, printed):
    variables = {"TF_ENABLE_ONEDNN_OPTS": "0", preflight.ONEDNN: own}
    code = _KERNELS.format(first=first)
    assert script(code, **variables).strip() == printed


def test_public_names_need_no_tensorflow_before_they_are_used():
    code = "import simmatch_tf, sys; simmatch_tf.Config; simmatch_tf.Result;"
    code += "print('tensorflow' in sys.modules)"
    assert script(code).strip() == "False"
    assert simmatch_tf.fit and not terminal.quiet()


SHARES = {"cat": 0.6, "dog": 0.3, "the rest": 0.1}


@pytest.mark.parametrize(
    "text",
    [
        "cat,0.6\ndog,0.3\nthe rest,0.1\n",
        "Class,Share\r\n\r\ncat, 60%\r\ndog, 30 %\r\nthe rest, 10%",
        'class;share\ncat;0,6\ndog;0,3\n"the rest";0,1\n',
        "cat\t0.6\ndog\t0.3\nthe rest\t0.1\n",
        "\ufeffcat,0.6\ndog,0.3\nthe rest,0.1\n",
    ],
)
def test_class_shares(text, tmp_path):
    path = tmp_path / "shares.csv"
    path.write_bytes(text.encode())
    shares = preflight.class_shares(str(path))
    assert shares == pytest.approx(SHARES)
    assert list(shares) == list(SHARES)


def test_rounded_class_shares_are_made_to_sum_to_one(tmp_path):
    path = tmp_path / "shares.csv"
    path.write_text("a,0.333\nb,0.333\nc,0.333\n")
    shares = preflight.class_shares(str(path))
    assert shares == pytest.approx(dict.fromkeys("abc", 1 / 3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat,0.6\ndog,0.3\n", "2 classes sum to 0.9: must sum to 1"),
        ("", "0 classes sum to 0: must"),
        ("class,share\n", "0 classes sum to 0: must"),
        ("cat,60\ndog,40\n", "line 1: the share of cat is 60: must be above"),
        ("cat,1\ndog,0\n", "line 2: the share of dog is 0: must be above 0"),
        ("cat,1.5\ndog,-0.5\n", "share of cat is 1.5"),
        ("cat,0.5\n\ncat,0.5\n", "line 3: class cat is given twice"),
        ("cat,nan\ndog,1\n", "line 1: 'cat,nan': must be a class and its"),
        ("cat 0.5\ndog 0.5\n", "line 1: 'cat 0.5': must be a class"),
        ("cat,0.5,x\ndog,0.5\n", "line 1: 'cat,0.5,x': must be"),
        (",0.5\ndog,0.5\n", "line 1: ',0.5': must be a class"),
        ("cat,0,6\ndog,0,4\n", "line 1: 'cat,0,6': must be a class"),
    ],
)
def test_class_shares_that_are_none(text, message, tmp_path):
    path = tmp_path / "shares.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        preflight.class_shares(str(path))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"--class_prior={path}")


def test_a_class_prior_is_checked_before_a_run(tmp_path):
    missing = runs.config(tmp_path / "run", class_prior=str(tmp_path / "no"))
    with pytest.raises(InputError, match="must be uniform, labeled, or a CSV"):
        preflight.check_available(missing)
    # A run that has begun has its shares.
    preflight.check_available(missing, resumed=True)
