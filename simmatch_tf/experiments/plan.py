"""Plans: a base recipe, and lists of values to vary, which give the cells.

    [plan]
    title = Digits, 40 labels
    base = --flagfile=configs/digits_40.cfg
    seeds = 0 1 2
    reference = SimMatch

    [method]
    Supervised = --algorithm=supervised
    SimMatch =

    [labels]
    20 = --labels=20
    40 =

Each section but the first is a list of lines NAME = FLAGS OF TRAIN. A cell
combines one value of each list with one seed; of two equal flags the later one
counts. Nothing here imports TensorFlow.
"""

import configparser
import dataclasses
import itertools
import pathlib
import re
import shlex
from collections.abc import Iterator, Sequence

from simmatch_tf import config as config_lib
from simmatch_tf import io
from simmatch_tf.experiments import identity
from simmatch_tf.flags import commandline, errors, flagfiles
from simmatch_tf.flags.errors import InputError

_KEYS = ("title", "base", "seeds", "columns", "reference", "vary")
_VARY = ("all together", "one at a time")
# Flags that the experiment sets itself.
_OWN = ("workdir", "overwrite", "describe", "seed", "split_seed", "progress")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a plan.

    Attributes:
        row: Its row in the table: the names of its values, without the one
            that is the column.
        column: Its column in the table; "" if there is one column. In a plan
            that varies one list at a time: that list.
        seed: Seed of the labels and of everything else.
        config: Its flags, without the workdir.
    """

    row: str
    column: str
    seed: int
    config: config_lib.Config

    def title(self, *, seed: bool = True) -> str:
        """Returns the cell's name, with or without its seed."""
        return _title(self.row, self.column, f"seed {self.seed}" * seed)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The content of a plan's file.

    Attributes:
        path: The file.
        title: Title of the table.
        base: Flags of each cell.
        seeds: Seeds; each cell is run once with each.
        lists: Name of a list → name of a value → its flags.
        columns: The list whose values are columns of the table; None for a
            single column.
        reference: The row that the others are compared with, if any.
        curves: Whether the lists are varied one at a time, each a curve.
    """

    path: pathlib.Path
    title: str
    base: tuple[str, ...]
    seeds: tuple[int, ...]
    lists: dict[str, dict[str, tuple[str, ...]]]
    columns: str | None
    reference: str | None
    curves: bool

    @property
    def name(self) -> str:
        """The name of the file, without .cfg."""
        return self.path.stem

    def places(self) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """Yields row, column and flags of each place in the table, in order."""
        if self.curves:
            for column, values in self.lists.items():
                for row, words in values.items():
                    yield row, column, words
            return
        for names in itertools.product(*self.lists.values()):
            chosen = dict(zip(self.lists, names, strict=True))
            words = [self.lists[key][name] for key, name in chosen.items()]
            column = chosen.pop(self.columns, "")
            yield ", ".join(chosen.values()), column, sum(words, ())

    def cells(self) -> list[Cell]:
        """Returns all runs, those of the first seed first.

        Raises:
            InputError: The flags of a cell are wrong, or two cells are the
                same run.
        """
        cells = []
        for seed, place in itertools.product(self.seeds, self.places()):
            row, column, words = place
            own = (f"--seed={seed}", f"--split_seed={seed}")
            try:
                # As of a recipe: a row may choose a method that lacks some.
                base = flagfiles.expand(
                    self.base, config_lib.Config.alternatives
                )
                base = map(flagfiles.FileWord, base)
                config = config_lib.Config.from_argv(
                    ["train", *base, *words, *own]
                )
                # Of a flagfile.
                for name in (
                    "overwrite",
                    "describe",
                    "extend_minutes",
                    "extend_steps",
                ):
                    if getattr(config, name):
                        raise InputError(f"--{name}: must not be in a plan")
            except InputError as error:
                title = _title(row, column)
                raise InputError(f"{self.path}: {title}: {error}") from None
            cells.append(Cell(row, column, seed, config))
        self._check_distinct(cells)
        return cells

    def _check_distinct(self, cells: list[Cell]) -> None:
        """Checks that cells differ; two curves may share a value."""
        known: dict[tuple[str, str], Cell] = {}
        for cell in cells:
            curve = cell.column if self.curves else ""
            key = (identity.name(cell.config), curve)
            other = known.setdefault(key, cell)
            if other is not cell:
                raise InputError(
                    f"{self.path}: {other.title(seed=False)} and "
                    f"{cell.title(seed=False)}: are the same run, with the "
                    "same values of all flags that decide its result"
                )


def read(name: str) -> Plan:
    """Reads a plan from the working folder or from the package's configs.

    Raises:
        InputError: The file cannot be read, or its content is wrong.
    """
    path = flagfiles.find(name, name, folder="configs/plans")
    parser = configparser.ConfigParser(
        delimiters=("=",), comment_prefixes=("#",), interpolation=None
    )
    parser.optionxform = str  # names keep their case
    text = io.read_text(path, name)
    if not re.search(r"^\[", text, re.MULTILINE) and "--" in text:
        raise InputError(
            f"{name}: is a recipe; a plan has sections [plan], [method], …: "
            "see docs/experiments.md"
        )
    try:
        parser.read_string(text, name)
    except configparser.Error as error:
        text = " ".join(str(error).split())
        raise InputError(f"{name}: cannot be read as a plan ({text})") from None
    if "plan" not in parser:
        raise InputError(f"{name}: has no section [plan]")
    own = dict(parser["plan"])
    for key in own:
        if key not in _KEYS:
            raise InputError(
                f"{name}: [plan] {key}: is unknown" + errors.nearest(key, _KEYS)
            )
    lists = {
        section: {
            key: _words(name, f"[{section}] {key}", value)
            for key, value in parser[section].items()
        }
        for section in parser.sections()
        if section != "plan"
    }
    vary = own.get("vary", _VARY[0])
    if vary not in _VARY:
        raise InputError(
            f"{name}: [plan] vary={vary}: must be {_VARY[0]!r} or {_VARY[1]!r}"
        )
    plan = Plan(
        path=path,
        title=own.get("title", path.stem),
        base=_words(name, "[plan] base", own.get("base", "")),
        seeds=commandline.numbers(
            f"{name}: [plan] seeds", own.get("seeds", "0")
        ),
        lists=lists,
        columns=own.get("columns"),
        reference=own.get("reference"),
        curves=vary == _VARY[1],
    )
    _check(name, plan)
    return plan


def of_seeds(cells: list[Cell], chosen: Sequence[int]) -> list[Cell]:
    """Returns the cells of the chosen seeds; all if none is chosen.

    Raises:
        InputError: No cell has a chosen seed.
    """
    known = list(dict.fromkeys(cell.seed for cell in cells))
    for seed in chosen:
        if seed not in known:
            raise InputError(
                f"--seeds: the plan has {', '.join(map(str, known))}, not "
                f"{seed}"
            )
    return [cell for cell in cells if cell.seed in (chosen or known)]


def _words(name: str, key: str, value: str) -> tuple[str, ...]:
    """Splits the flags of a line, and checks that the plan may have them."""
    try:
        words = tuple(shlex.split(value))
    except ValueError as error:
        raise InputError(f"{name}: {key} = {value}: {error}") from None
    for word in words:
        flag = word.lstrip("-").removeprefix("no").split("=")[0]
        bare = word.lstrip("-").split("=")[0]
        if not word.startswith("--"):
            raise InputError(
                f"{name}: {key}: {word!r} is not a flag; flags are --NAME=VALUE"
            )
        if flag in _OWN or bare in _OWN:
            raise InputError(
                f"{name}: {key}: {word} must not be in a plan; seeds are given "
                "in [plan]"
            )
    return words


def _title(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def _check(name: str, plan: Plan) -> None:
    """Checks that a plan's parts fit together."""
    if not plan.lists or not all(plan.lists.values()):
        raise InputError(
            f"{name}: nothing is varied; beside [plan], give a section with "
            "a line NAME = FLAGS for each value"
        )
    for key in ("columns", "reference"):
        value = getattr(plan, key)
        if value is not None and plan.curves:
            raise InputError(
                f"{name}: [plan] {key}={value}: needs vary = {_VARY[0]}"
            )
    if plan.columns is not None and plan.columns not in plan.lists:
        raise InputError(
            f"{name}: [plan] columns={plan.columns}: must be the name of a "
            "section" + errors.nearest(plan.columns, tuple(plan.lists))
        )
    places = [(row, column) for row, column, _ in plan.places()]
    for place in places:
        if places.count(place) > 1:
            raise InputError(
                f"{name}: two places of the table are called "
                f"{_title(*place)!r}; names of two lists are joined by ', '"
            )
    rows = tuple(dict.fromkeys(row for row, _ in places))
    if plan.reference is not None and plan.reference not in rows:
        raise InputError(
            f"{name}: [plan] reference={plan.reference}: must be the name of a "
            "row" + errors.nearest(plan.reference, rows)
        )
