"""The registries of algorithms, image sources and backbones.

A name is added by a decorator in one file:

    from simmatch_tf import registry

    @registry.algorithms.register("comatch")
    class CoMatch(algorithm.Algorithm): ...

The files of the package's own folders are found by themselves, in alphabetical
order, when a name is first looked up; a file elsewhere is named by --plugin, or
imported by the program that uses it. None of them may import TensorFlow at its
top (see `lazy`): flags are checked before TensorFlow is imported.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from simmatch_tf import io
from simmatch_tf.flags import commandline, errors

_Registered = TypeVar("_Registered")


@dataclasses.dataclass(frozen=True)
class Entry:
    """What was registered under one name.

    Attributes:
        pattern: The name, or a regular expression that matches whole names.
        value: What was registered: a class or a function.
        facts: The keyword arguments of `Registry.register`.
    """

    pattern: str
    value: Any
    facts: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """Names to list in help: of a pattern, its `examples` fact."""
        return tuple(self.facts.get("examples", (self.pattern,)))

    @property
    def flags(self) -> type[commandline.HyperParameters]:
        """The class of its flags: the fact `flags`, or one in the value."""
        usual = commandline.HyperParameters
        own = getattr(self.value, "HyperParameters", usual)
        return self.facts.get("flags", own)


class Registry:
    """Names that a flag takes, each registered in a file of its own.

    Attributes:
        flag: The flag, such as "algorithm".
    """

    def __init__(self, flag: str, package: str, base: str = "") -> None:
        """Makes an empty registry.

        Args:
            flag: The flag that takes the names.
            package: Package whose modules are imported on the first lookup.
            base: Module and name of the class from which each registered class
                must derive; "": functions are registered.
        """
        self.flag, self._base = flag, base
        self._package, self._imported = package, False
        self._entries: dict[str, Entry] = {}

    def register(
        self, pattern: str, **facts: Any
    ) -> Callable[[_Registered], _Registered]:
        r"""Registers the decorated class or function.

        Args:
            pattern: The name, or a regular expression that matches whole
                names, such as r"wrn_(\d+)_(\d+)". Flags of its own have the
                name in front of them, and those of an expression the letters
                that it begins with: --wrn.width. A class attribute `prefix` of
                the flags says otherwise.
            **facts: What must be known about it before TensorFlow is imported;
                each registry's users say which they read.

        Raises:
            ValueError: Another class or function has the name; or an
                expression that begins with no letter has flags, and their
                class has no `prefix`.
            TypeError: The class does not derive from the registry's base, or
                its flags are not declared as they must be.
        """

        def add(value: _Registered) -> _Registered:
            if not value.__module__.startswith(f"{self._package}."):
                self._import()  # its names are taken
            other = self._entries.get(pattern)
            # A module that is run again, as in a notebook, replaces its own;
            # so does a file that is both a plugin and imported.
            if other and not _is_same(other.value, value):
                raise ValueError(
                    f"--{self.flag}={pattern} is registered twice: by "
                    f"{_where(other.value)} and by {_where(value)}"
                )
            bases = map(_origin, getattr(value, "__mro__", ()))
            if self._base and self._base not in bases:
                raise TypeError(
                    f"{value.__qualname__} is not a subclass of {self._base}"
                )
            own = facts.get("flags") or vars(value).get("HyperParameters")
            if own is not None:
                if "prefix" not in vars(own):
                    own.prefix = f"{_prefix(pattern, self.flag)}."
                own.declared()  # checks the declarations
            self._entries[pattern] = Entry(pattern, value, facts)
            return value

        return add

    def find(
        self, name: str, *, flag: str | None = None
    ) -> tuple[Entry, re.Match[str]]:
        """Finds a name.

        Args:
            name: The name.
            flag: The flag that gave the name, for messages; by default the
                registry's own.

        Returns:
            Its entry, and the match of its pattern.

        Raises:
            InputError: Nothing is registered under the name, or the entry's
                `check` fact, called with the groups of the match, returns a
                problem: the end of a message, such as ": must be …".
        """
        given = f"--{flag or self.flag}={name}"
        # A name of its own comes before patterns that match it, too.
        for entry in sorted(self, key=lambda entry: entry.pattern != name):
            if match := re.fullmatch(entry.pattern, name):
                check = entry.facts.get("check")
                problem = check(*match.groups()) if check else ""
                if problem:
                    raise errors.InputError(given + problem)
                return entry, match
        kind = "method" if self.flag == "algorithm" else self.flag
        raise errors.InputError(
            f"{given} is unknown{errors.nearest(name, self.names())} (a "
            f"{kind} of your own needs --plugin=FILE.py)"
        )

    def names(self) -> list[str]:
        """Returns names to list in help and to suggest; see `Entry.names`."""
        return [name for entry in self for name in entry.names]

    def __iter__(self) -> Iterator[Entry]:
        self._import()
        return iter(sorted(self._entries.values(), key=self._place))

    def _import(self) -> None:
        """Imports the modules of the package, once."""
        if not self._imported:
            self._imported = True
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self._package}.{module.name}")

    def _place(self, entry: Entry) -> str:
        """Sorts entries of the package by module, those of plugins last."""
        module = entry.value.__module__
        return module if module.startswith(f"{self._package}.") else "~"


class Networks(Registry):
    """The registry of backbones.

    The facts of an entry, each of which may be left out. Those that are numbers
    may be functions, called with the groups of the match:
        examples: Names to list in help, where the pattern is no plain name.
        check: See `Registry.find`.
        min_side: Smallest side of its images in pixels, 1 by default.
        side_step: Number of which the sides must be multiples, 1 by default.
        usual_side: Side in pixels of the images of a folder, unless they are
            smaller or flags say another; 224 even for smaller ones by default.
        side_with_weights: The same with --init_from, even for smaller ones;
            `usual_side` by default.
        normalized: False for a network that takes images from 0 to 255, for
            it normalizes them itself; True by default.
        initializer: Initializer of the heads on top of it; see
            `networks.heads.initializers`.
        unpublished: Called with the groups of the match, says where there are
            published weights if there are none for this name; "" if there are.
            Without it there are none.
        missing: Called with the groups of the match when a run is begun, says
            which of its files does not exist: the end of a message, or "".
        flags: Class of flags of its own, whose values the maker takes as
            keyword arguments.
    """

    def fact(
        self, name: str, fact: str, default: Any = None, *, flag: str = ""
    ) -> Any:
        """Returns a fact of a backbone.

        Args:
            name: The backbone.
            fact: Name of the fact; see the class.
            default: Its value where it is left out.
            flag: The flag that gave the name; see `find`.

        Raises:
            InputError: There is no such backbone.
        """
        entry, match = self.find(name, flag=flag or None)
        value = entry.facts.get(fact, default)
        return value(*match.groups()) if callable(value) else value

    def check_published(self, name: str) -> None:
        """Checks that weights for a backbone are published.

        Args:
            name: The backbone.

        Raises:
            InputError: There are none, or there is no such backbone.
        """
        entry, match = self.find(name)
        elsewhere = "those of Keras Applications have some, such as "
        elsewhere += "keras_applications:MobileNetV3Small"
        if unpublished := entry.facts.get("unpublished"):
            elsewhere = unpublished(*match.groups())
        if elsewhere:
            raise errors.InputError(
                f"--init_from=imagenet and --{self.flag}={name}: there are no "
                f"published weights of this network; {elsewhere}"
            )

    def check_side(
        self, name: str, side: int, *, flag: str | None = None
    ) -> None:
        """Checks that a backbone takes images of this size.

        Args:
            name: The backbone.
            side: Shorter side of the images in pixels.
            flag: The flag that gave the name; see `find`.

        Raises:
            InputError: It does not, or there is no such backbone.
        """
        least = self.fact(name, "min_side", 1, flag=flag or "")
        step = self.fact(name, "side_step", 1, flag=flag or "")
        if side < least or side % step:
            multiple = f", and a multiple of {step}" if step > 1 else ""
            raise errors.InputError(
                f"--{flag or self.flag}={name} takes images with sides of at "
                f"least {least}{multiple}, not {side}: give another "
                "--image_size"
            )


# Name of a plugin file → the path that it was loaded from.
_plugins: dict[str, str] = {}
# The same, of plugins that replace those of a run.
_moved: dict[str, str] = {}


def load_plugin(
    path: str, *, moved: bool = False, recorded: bool = False
) -> None:
    """Imports a Python file that registers something, once.

    Args:
        path: The file. A file that the program has imported is not imported
            again. If it does not exist, a plugin of the same name that was
            loaded from elsewhere is taken for it.
        moved: The file replaces any of the same name that a run recorded,
            whether that still exists or not.
        recorded: A run or a recipe names the file, so that it may have been
            moved since.

    Raises:
        InputError: There is no such file, or it fails.
    """
    file = plugin_file(path)
    if moved:
        file = os.path.realpath(io.expand(path))
    name = f"simmatch_tf_plugin_{hashlib.sha256(file.encode()).hexdigest()[:8]}"
    base = os.path.basename(file)
    if moved and os.path.isfile(file):
        _moved[base] = file
    if name in sys.modules:
        return
    known = (algorithms, sources, networks)
    entries = [e for each in known for e in each._entries.values()]
    if file in {file_of(entry.value) for entry in entries}:
        _plugins[base] = file
        return
    if not file.endswith(".py"):
        raise errors.InputError(f"--plugin={path}: must be a .py file")
    if not os.path.isfile(file):
        hint = f"; if it was moved, give --plugin=NEW_FOLDER/{base}"
        raise errors.PluginError(
            f"--plugin={path}: no such file{hint if recorded else ''}"
        )
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        _plugins[base] = file
    except Exception as error:
        del sys.modules[name]
        line = errors.line_in(file, error)
        where = f", line {line}" if line else ""
        # The text of a syntax error names file and line again.
        says = error.msg if isinstance(error, SyntaxError) and line else error
        raise errors.PluginError(
            f"--plugin={path}{where}: {type(error).__name__}: {says}"
        ) from error


def plugin_file(path: str) -> str:
    """Returns where the file that --plugin names is now; see `load_plugin`."""
    file = os.path.realpath(io.expand(path))
    base = os.path.basename(file)
    if base in _moved:
        return _moved[base]
    return file if os.path.exists(file) else _plugins.get(base, file)


def file_of(value: Any) -> str | None:
    """Returns the file outside the package that defines a registered value.

    None for a value of the package, of a notebook, or of the program itself,
    which cannot be imported without running it.
    """
    name = value.__module__
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    own = name == "__main__" or name.startswith("simmatch_tf.")
    return os.path.realpath(file) if file.endswith(".py") and not own else None


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values are one class or function of one file."""
    if one.__qualname__ != other.__qualname__:
        return False
    file = file_of(one)
    return one.__module__ == other.__module__ or (
        file is not None and file == file_of(other)
    )


def _prefix(pattern: str, flag: str) -> str:
    """Returns what stands before the flags of a registered name.

    Raises:
        ValueError: The pattern begins with no letter.
    """
    if re.fullmatch("[\\w:/-]+", pattern):
        return pattern
    match = re.match(r"[A-Za-z](\w*[A-Za-z0-9])?(?![*?{])", pattern)
    if match is None:
        raise ValueError(
            f"--{flag}={pattern}: its flags need a name to stand before them; "
            'give their class a prefix, such as prefix = "mine."'
        )
    return match[0]


def _where(value: Any) -> str:
    """Returns where a value is defined, for a message: a file, if it can."""
    return file_of(value) or _origin(value)


def _origin(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


algorithms = Registry(
    "algorithm",
    "simmatch_tf.algorithms",
    "simmatch_tf.algorithms.algorithm.Algorithm",
)
sources = Registry("dataset", "simmatch_tf.data.sources")
networks = Networks("backbone", "simmatch_tf.networks.backbones")
