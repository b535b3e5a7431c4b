"""The backbone of docs/extending.md, added from outside by --plugin."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import simmatch_tf
from simmatch_tf import registry
from simmatch_tf.flags import errors

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The page's first block of Python in the section Backbone, as a file."""
    section = PAGE.read_text("utf-8").partition("\n## Backbone\n")[2]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(code.splitlines()) < 40
    path = tmp_path_factory.mktemp("plugin") / "tiny.py"
    path.write_text(code)
    return str(path)


def config(plugin, **changes):
    values = {
        "labels": 40,
        "steps": 2,
        "batch_size": 8,
        "unlabeled_ratio": 1,
        "image_size": 8,
        "summaries": False,
        "progress": False,
        **changes,
    }
    return simmatch_tf.Config(plugin=(plugin,), backbone="tiny", **values)


def test_its_flag_is_one_of_a_run(plugin):
    run = config(plugin, **{"tiny.filters": 4})
    assert "--tiny.filters=4\n" in run.to_flagfile()
    assert run.differences(config(plugin)) == {"tiny.filters": (4, 16, False)}
    with pytest.raises(errors.InputError, match="--tiny.filters=0: must be at"):
        config(plugin, **{"tiny.filters": 0})
    with pytest.raises(errors.InputError, match="at least 8, not 4"):
        registry.networks.check_side("tiny", 4)


def test_its_flag_is_in_the_help(plugin):
    words = ["simmatch_tf.train", f"--plugin={plugin}", "--helpfull"]
    done = subprocess.run(
        [sys.executable, "-m", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "tiny.filters" in done.stdout + done.stderr


@pytest.mark.slow
def test_it_trains_and_is_loaded(plugin, tmp_path):
    run = config(plugin, workdir=str(tmp_path), **{"tiny.filters": 4})
    simmatch_tf.fit(run)
    model = simmatch_tf.load(tmp_path)
    outputs = model(np.zeros([2, 8, 8, 1], np.uint8))
    assert outputs["features"].shape == (2, 16)
    # A network on its own, without the file that defined it.
    code = (
        "import simmatch_tf, keras; "
        f"model = keras.saving.load_model({str(tmp_path / 'model.keras')!r}); "
        "print(model.class_names[:2])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "['0', '1']\n"
