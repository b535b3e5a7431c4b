"""Names that files outside the package register, and their flags."""

import dataclasses
import importlib
import os
import re
import subprocess
import sys
import typing

import pytest

from simmatch_tf import config as config_lib
from simmatch_tf import evaluate, registry
from simmatch_tf.algorithms import algorithm, pseudo_labeling
from simmatch_tf.config import Config
from simmatch_tf.flags import command, commandline
from simmatch_tf.flags.errors import InputError

PLUGIN = """
import dataclasses

from simmatch_tf import registry
from simmatch_tf.algorithms import fixmatch
from simmatch_tf.flags import errors
from simmatch_tf.flags.commandline import flag


@registry.algorithms.register("queue_match")
class QueueMatch(fixmatch.FixMatch):
    @dataclasses.dataclass(frozen=True)
    class HyperParameters(fixmatch.FixMatch.HyperParameters):
        defaults = {"unlabeled_ratio": 1}

        queue_size: int = flag(2560, "Embeddings in the queue.", low=1)
        queue: bool = flag(True, "Whether there is a queue.")
        threshold: float = flag(0.8, "Confidence threshold.", low=0, high=1)

        def check(self):
            super().check()
            if self.queue_size < 10 and self.queue:
                raise errors.InputError(
                    f"--queue_match.queue_size={self.queue_size}: too short"
                )
"""
GOOD = {"labels": 40, "steps": 10}


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A plugin's path; what it registers is forgotten after the test."""
    for each in (registry.algorithms, registry.networks):
        list(each)
        monkeypatch.setattr(each, "_entries", dict(each._entries))
    monkeypatch.setattr(registry, "_plugins", {})
    monkeypatch.setattr(registry, "_moved", {})
    path = tmp_path / "plugin.py"
    path.write_text(PLUGIN)
    before = set(sys.modules)
    yield str(path)
    for name in set(sys.modules) - before:
        if name.startswith("simmatch_tf_plugin"):
            del sys.modules[name]


def queue_match(path, **values):
    return Config(**GOOD, plugin=(path,), algorithm="queue_match", **values)


def test_own_flags_have_the_name_in_front_and_inherited_ones_not(plugin):
    config = queue_match(plugin, **{"queue_match.queue_size": 20}, lambda_u=2)
    assert config.hyper.queue_size == 20
    assert getattr(config, "queue_match.queue_size") == 20
    assert config.queue_size == 20
    assert config.lambda_u == 2.0
    # Other defaults: of an inherited flag, and of a flag of every run.
    assert (config.threshold, config.unlabeled_ratio) == (0.8, 1)
    assert queue_match(plugin, unlabeled_ratio=3).unlabeled_ratio == 3
    values = config.values()
    assert values["queue_match.queue_size"] == 20
    assert "alpha" not in values and values["labels"] == 40
    assert values.keys() == config.fields().keys()


def test_own_flags_are_checked(plugin):
    for value, message in (
        (0, "--queue_match.queue_size=0: must be at least 1"),
        (5, "--queue_match.queue_size=5: too short"),
        ("x", "--queue_match.queue_size='x': must be a whole number"),
    ):
        with pytest.raises(InputError, match=message):
            queue_match(plugin, **{"queue_match.queue_size": value})
    with pytest.raises(
        InputError,
        match="--queue_match.queue_size=9: is for --algorithm=queue_match, not "
        "simmatch",
    ):
        Config(**GOOD, **{"queue_match.queue_size": 9})
    with pytest.raises(InputError, match="--noqueue_match.queue: is for"):
        Config(**GOOD, **{"queue_match.queue": False})
    # At its default it says nothing.
    assert Config(**GOOD, **{"queue_match.queue_size": 2560}) == Config(**GOOD)


def test_a_run_s_flagfile_brings_its_plugin(plugin, tmp_path):
    config = queue_match(plugin, **{"queue_match.queue": False})
    path = tmp_path / "flags.cfg"
    path.write_text(config.absolute().to_flagfile())
    assert f"--plugin={plugin}" in path.read_text()
    assert "--noqueue_match.queue\n" in path.read_text()
    assert Config.from_flagfile(path) == dataclasses.replace(
        config, workdir=str(tmp_path)
    )
    more = Config.from_flagfile(path, **{"queue_match.queue_size": 3})
    assert config.differences(more)["queue_match.queue_size"] == (
        2560,
        3,
        False,
    )
    assert Config.from_recorded(config.values()) == config


def test_a_plugin_that_was_moved(plugin, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    config = queue_match(plugin)
    gone = config.to_flagfile().replace(plugin, str(run / "plugin.py"))
    (run / "flags.cfg").write_text(gone)
    words = ["evaluate", f"--workdir={run}", f"--plugin={plugin}"]
    assert evaluate.EvaluateConfig.from_argv(words).plugin == (plugin,)
    assert Config.from_flagfile(run / "flags.cfg").algorithm == "queue_match"
    other = gone.replace("plugin.py", "other.py")
    (run / "flags.cfg").write_text(other)
    with pytest.raises(InputError, match="NEW_FOLDER/other.py$"):
        Config.from_flagfile(run / "flags.cfg")


def test_a_moved_plugin_replaces_that_of_the_flagfile(plugin, tmp_path):
    flagfile = tmp_path / "flags.cfg"
    gone = str(tmp_path / "gone" / "plugin.py")
    flagfile.write_text(queue_match(plugin).to_flagfile().replace(plugin, gone))
    words = [f"--flagfile={flagfile}", f"--plugin={plugin}"]
    assert Config.from_argv(["train", *words]).plugin == (plugin,)


def test_the_file_of_an_imported_method_becomes_a_plugin(
    plugin, tmp_path, monkeypatch
):
    path = tmp_path / "imported_method.py"
    path.write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "imported_method", raising=False)
    importlib.import_module("imported_method")
    config = Config(**GOOD, algorithm="queue_match").absolute()
    assert config.plugin == (str(path),)
    registry.load_plugin(str(path))  # not registered twice
    assert Config(**GOOD).absolute().plugin == ()


def test_a_method_has_only_the_flags_that_it_derives(plugin):
    @registry.algorithms.register("thresholds")
    class Thresholds(algorithm.Algorithm):
        @dataclasses.dataclass(frozen=True)
        class HyperParameters(pseudo_labeling.HyperParameters):
            pass

    config = Config(**GOOD, algorithm="thresholds", threshold=0.5, lambda_u=2)
    assert config.hyper.values() == {"threshold": 0.5, "lambda_u": 2.0}
    with pytest.raises(
        InputError, match="is for --algorithm=.*fixmatch or .*, n"
    ):
        Config(**GOOD, algorithm="thresholds", targets_from="teacher")
    with pytest.raises(TypeError, match="must derive from pseudo_labeling.Tar"):

        class Lacks(pseudo_labeling.PseudoLabeling):
            HyperParameters = Thresholds.HyperParameters


def test_a_name_of_ones_own_asks_for_its_file():
    with pytest.raises(InputError, match="a method of your own needs --plugin"):
        Config(**GOOD, algorithm="own_match")
    with pytest.raises(InputError, match="needs --plugin=FILE.py"):
        Config.from_argv(["x", "--own_match.alpha=1"])


@pytest.mark.parametrize(
    ("pattern", "flag"), [(r"res_(\d+)", "res.width"), ("own", "own.width")]
)
def test_flags_of_a_pattern_have_its_first_letters(plugin, pattern, flag):
    @registry.networks.register(pattern, examples=())
    class Family:
        @dataclasses.dataclass(frozen=True)
        class HyperParameters(commandline.HyperParameters):
            width: int = commandline.flag(1, "Width.")

    assert flag in Config.declared()
    with pytest.raises(ValueError, match="give their class a prefix"):
        registry.networks.register(
            r"(\d+)_res", flags=type("Flags", (commandline.Values,), {})
        )(Family)


def test_another_algorithm_behind_a_flagfile_drops_its_flags(plugin, tmp_path):
    path = tmp_path / "mine.cfg"
    path.write_text(
        f"--plugin={plugin}\n--labels=40\n--steps=5\n--threshold=0.7\n"
        "--algorithm=queue_match\n--queue_match.queue_size=30\n"
        "--noqueue_match.queue\n"
    )
    mine = Config.from_flagfile(path)
    assert mine.queue_size == 30 and not mine.queue
    other = Config.from_argv(
        ["x", f"--flagfile={path}", "--algorithm=simmatch"]
    )
    assert other.threshold == 0.7 and not hasattr(other, "queue_size")
    alone = Config.from_flagfile(path, algorithm="supervised")
    assert not hasattr(alone, "threshold")
    with pytest.raises(InputError, match="--queue_match.queue_size=3: is for"):
        Config.from_argv(
            [
                *("x", f"--flagfile={path}", "--algorithm=simmatch"),
                "--queue_match.queue_size=3",
            ]
        )
    # A recipe behind an algorithm replaces it: nothing is dropped in silence.
    recipe = tmp_path / "recipe.cfg"
    recipe.write_text("--labels=40\n--steps=5\n--algorithm=simmatch\n")
    words = [f"--plugin={plugin}", "--algorithm=queue_match"]
    words += ["--queue_match.queue_size=30", f"--flagfile={recipe}"]
    with pytest.raises(InputError, match="--queue_match.queue_size=30: is for"):
        Config.from_argv(["x", *words])
    replaced = dataclasses.replace(mine, algorithm="fixmatch")
    assert replaced.threshold == 0.7 and not hasattr(replaced, "queue_size")


def test_a_recipe_s_value_replaces_a_default_of_the_method(plugin, tmp_path):
    recipe = tmp_path / "recipe.cfg"
    recipe.write_text("--labels=40\n--steps=5\n--unlabeled_ratio=7\n")
    words = ["x", f"--plugin={plugin}", f"--flagfile={recipe}"]
    words += ["--algorithm=queue_match"]
    config = Config.from_argv(words)
    assert config.unlabeled_ratio == 7
    assert config.replaced_defaults() == [
        "--unlabeled_ratio=7 comes from the recipe; the default of queue_match "
        "is 1"
    ]
    for ratio in (1, 3):  # as the user wants it
        own = Config.from_argv([*words, f"--unlabeled_ratio={ratio}"])
        assert own.unlabeled_ratio == ratio
        assert own.replaced_defaults() == []
    assert queue_match(plugin, unlabeled_ratio=3).replaced_defaults() == []


def test_help_lists_a_plugin_s_flags(plugin):
    registry.load_plugin(plugin)
    text = command.help_text(Config, ["--algorithm=queue_match"])
    assert "For --algorithm=queue_match:" in text
    assert "--queue_match.queue_size" in text and "--alpha" not in text
    assert re.search(r"simmatch,[^.]* queue_match", text)
    other = command.help_text(Config)
    assert "--alpha" in other and "--queue_match.queue_size" not in other
    full = command.help_text(Config, full=True)
    assert "--alpha" in full and "--queue_match.queue_size" in full


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file$"),
        ("import os\n\n1 / 0\n", "line 3: ZeroDivisionError: division"),
        ("x = = 1\n", "line 1: SyntaxError: invalid syntax"),
        ("import nowhere_at_all\n", "line 1: ModuleNotFoundError: No module"),
        (
            "from simmatch_tf import registry\n"
            "@registry.algorithms.register('simmatch')\n"
            "class Mine: pass\n",
            "line 2: ValueError: --algorithm=simmatch is registered twice",
        ),
        (
            "from simmatch_tf import registry\n"
            "@registry.algorithms.register('mine')\n"
            "class Mine: pass\n",
            "line 2: TypeError: Mine is not a subclass of simmatch_tf.algo",
        ),
        (
            "from simmatch_tf.algorithms import algorithm\n"
            "class Mine(algorithm.Algorithm):\n"
            "    unlabeled_views = ('wek',)\n",
            "line 2: ValueError: view 'wek': must be weak, strong",
        ),
    ],
)
def test_a_plugin_that_fails(plugin, tmp_path, content, message):
    path = tmp_path / "bad.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=f"--plugin={path}.*{message}"):
        Config.from_argv(["x", f"--plugin={path}", "--labels=40", "--steps=2"])


@pytest.mark.parametrize("kept", [True, False])
def test_a_plugin_that_a_command_names_replaces_that_of_a_run(
    plugin, tmp_path, kept
):
    old, new = tmp_path / "old" / "mine.py", tmp_path / "mine.py"
    old.parent.mkdir()
    flagfile = tmp_path / "flags.cfg"
    flagfile.write_text(
        f"--plugin={old}\n--labels=40\n--steps=5\n--algorithm=queue_match\n"
    )
    with pytest.raises(
        InputError, match="no such file; if it was moved, give --plugin=NEW"
    ):
        Config.from_flagfile(flagfile)
    new.write_text(PLUGIN.replace("2560", "77"))
    if kept:
        old.write_text(PLUGIN)
    config_lib.Plugins.from_argv(["evaluate", f"--plugin={new}"])
    config = Config.from_flagfile(flagfile)
    assert config.queue_size == 77
    assert registry.plugin_file(str(old)) == str(new)
    # Two that nothing ranks are refused by their files.
    other = tmp_path / "other.py"
    other.write_text(PLUGIN)
    with pytest.raises(
        InputError, match=f"registered twice: by {new} and by {other}"
    ):
        registry.load_plugin(str(other))


def test_a_plugin_is_a_python_file(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match="notes.txt: must be a .py file"):
        registry.load_plugin(str(tmp_path / "notes.txt"))


def test_two_algorithms_cannot_have_one_flag(plugin):
    @registry.algorithms.register("other")
    class Other(algorithm.Algorithm):
        @dataclasses.dataclass(frozen=True)
        class HyperParameters(commandline.HyperParameters):
            prefix = ""
            alpha: float = commandline.flag(1.0, "Something else.")

    with pytest.raises(ValueError, match="--alpha is declared twice"):
        Config.declared()


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        (
            "width: int = commandline.flag(1, 'Width.')",
            "HyperParameters declares",
        ),
        ("*width: int = 1", "width: make each field by commandline.flag"),
        (
            "*width: list[int] = commandline.flag((), 'Width.')",
            r"width is of type list\[int\]: must be int, float, str or bool",
        ),
    ],
)
def test_a_declaration_that_is_wrong(plugin, declaration, message):
    decorator = "dataclasses.dataclass(frozen=True)"
    code = (
        "class Mine(algorithm.Algorithm):\n"
        f"    @{decorator if declaration[0] == '*' else 'staticmethod'}\n"
        "    class HyperParameters(commandline.HyperParameters):\n"
        f"        {declaration.removeprefix('*')}\n"
    ).replace("    @staticmethod\n", "")
    names = {
        "algorithm": algorithm,
        "commandline": commandline,
        "dataclasses": dataclasses,
        "__name__": __name__,
    }
    exec(code, names)
    with pytest.raises(TypeError, match=message):
        registry.algorithms.register("mine")(names["Mine"])
    assert "mine" not in registry.algorithms.names()


def test_flags_that_may_be_none_in_either_spelling(plugin):
    @dataclasses.dataclass(frozen=True)
    class Flags(commandline.HyperParameters):
        width: typing.Optional[int] = commandline.flag(None, "Width.")  # noqa: UP045
        names: tuple[str, ...] = commandline.flag((), "Names.")

    types = [each.type for each in Flags.declared().values()]
    assert types == [int, tuple]


def test_commands_read_plugins_without_tensorflow(plugin, tmp_path):
    code = (
        "import runpy, sys\n"
        "sys.modules['tensorflow'] = sys.modules['keras'] = None\n"
        "runpy.run_module('simmatch_tf.train', run_name='__main__')\n"
    )
    words = [f"--plugin={plugin}", "--algorithm=queue_match", "--labels=40"]
    for more, message in (
        (["--help"], "--queue_match.queue_size"),
        (
            ["--steps=2", "--queue_match.queue_size=0"],
            "error: --queue_match.queue_size=0: must be at least 1",
        ),
        (
            ["--steps=2", "--queue_match.queue_sise=9"],
            "did you mean --queue_match.queue_size",
        ),
        (["--steps=2", "--algorithm=queue_mach"], "did you mean queue_match"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *words, *more],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert message in done.stdout + done.stderr
