"""A plan: a base recipe, lists of values to vary, and the cells they make.

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

Each section but the first is a list: name = flags of train. A cell is one of
each list, under one seed; what stands later wins. Nothing here imports
TensorFlow.
"""

import configparser
import dataclasses
import itertools
import pathlib
import shlex
from collections.abc import Iterator, Sequence

from simmatch_tf import config as config_lib
from simmatch_tf import io
from simmatch_tf.experiments import identity
from simmatch_tf.flags import commandline, flagfiles
from simmatch_tf.flags.commandline import InputError

_KEYS = ("title", "base", "seeds", "columns", "reference", "vary")
_VARY = ("all together", "one at a time")
# Flags that are the experiment's own.
_OWN = ("workdir", "overwrite", "describe", "seed", "split_seed", "progress")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a plan.

    Attributes:
        row: Of the table: the names of what is varied, but for the columns.
        column: Of the table; "" where there is one. Of a plan that varies one
            at a time: the list that is varied.
        seed: Of the labels as well as of everything else.
        words: Flags of train, all but the workdir.
        config: What they come to.
    """

    row: str
    column: str
    seed: int
    words: tuple[str, ...]
    config: config_lib.Config


@dataclasses.dataclass(frozen=True)
class Plan:
    """What stands in a plan's file.

    Attributes:
        path: The file.
        title: Of the table.
        base: Flags of each cell.
        seeds: One run of each cell for each.
        lists: Name of a list → name of a value → its flags.
        columns: The list whose values are columns of the table; None: one
            column.
        reference: The row that the others are compared with; None: none.
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
        """That of the file."""
        return self.path.stem

    def places(self) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """Row, column and flags of each place in the table, in its order."""
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
        """All runs, those of the first seed first.

        Raises:
            InputError: The flags of one are not right, or two are one run.
        """
        found = []
        for seed, place in itertools.product(self.seeds, self.places()):
            row, column, words = place
            own = (f"--seed={seed}", f"--split_seed={seed}")
            words = (*self.base, *words, *own)
            try:
                config = config_lib.Config.from_argv(["train", *words])
                _check_own(config)
            except InputError as error:
                where = _where(row, column)
                raise InputError(f"{self.path}: {where}: {error}") from None
            found.append(Cell(row, column, seed, words, config))
        self._check_distinct(found)
        return found

    def _check_distinct(self, cells: list[Cell]) -> None:
        """Curves may share a value; other places are runs of their own."""
        known: dict[tuple[str, str], Cell] = {}
        for cell in cells:
            curve = cell.column if self.curves else ""
            key = (identity.name(cell.config), curve)
            other = known.setdefault(key, cell)
            if other is not cell:
                raise InputError(
                    f"{self.path}: {_where(other.row, other.column)} and "
                    f"{_where(cell.row, cell.column)}: are one and the same "
                    "run; in what decides its result they do not differ"
                )


def read(name: str) -> Plan:
    """Reads a plan (found in the folder or beside the package).

    Raises:
        InputError: The file, or what stands in it, is not right.
    """
    path = flagfiles.find(name, name, folder="configs/plans")
    parser = configparser.ConfigParser(
        delimiters=("=",), comment_prefixes=("#",), interpolation=None
    )
    parser.optionxform = str  # names are shown as they are written
    try:
        parser.read_string(io.read_text(path, name), name)
    except configparser.Error as error:
        text = " ".join(str(error).split())
        raise InputError(f"{name}: cannot be read as a plan ({text})") from None
    if "plan" not in parser:
        raise InputError(f"{name}: has no section [plan]")
    own = dict(parser["plan"])
    for key in own:
        if key not in _KEYS:
            raise InputError(
                f"{name}: [plan] {key}: is unknown"
                + commandline.nearest(key, _KEYS)
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
        raise InputError(f"{name}: [plan] vary={vary}: must be {_VARY[0]!r} or "
                         f"{_VARY[1]!r}")  # fmt: skip
    found = Plan(
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
    _check(name, found)
    return found


def of_seeds(cells: list[Cell], chosen: Sequence[int]) -> list[Cell]:
    """The cells of some seeds; of all, where none is chosen.

    Raises:
        InputError: A seed is no cell's.
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
    try:
        words = tuple(shlex.split(value))
    except ValueError as error:
        raise InputError(f"{name}: {key} = {value}: {error}") from None
    for word in words:
        flag = word.lstrip("-").removeprefix("no").split("=")[0]
        bare = word.lstrip("-").split("=")[0]
        if not word.startswith("--"):
            raise InputError(
                f"{name}: {key}: {word!r} is not a flag: flags are --NAME=VALUE"
            )
        if flag in _OWN or bare in _OWN:
            raise InputError(
                f"{name}: {key}: {word} is the experiment's own; seeds stand "
                "in [plan]"
            )
    return words


def _where(row: str, column: str) -> str:
    return ", ".join(filter(None, (row, column)))


def _check_own(config: config_lib.Config) -> None:
    """Checks what a flagfile may have brought in."""
    for name in ("overwrite", "describe"):
        if getattr(config, name):
            raise InputError(f"--{name}: is the experiment's own")


def _check(name: str, plan: Plan) -> None:
    """Checks that a plan's parts fit."""
    if not plan.lists or not all(plan.lists.values()):
        raise InputError(
            f"{name}: nothing is varied; beside [plan], give a section with "
            "a line NAME = FLAGS for each value"
        )
    for key in ("columns", "reference"):
        value = getattr(plan, key)
        if value is not None and plan.curves:
            raise InputError(
                f"{name}: [plan] {key}={value}: is for vary = {_VARY[0]}"
            )
    if plan.columns is not None and plan.columns not in plan.lists:
        raise InputError(
            f"{name}: [plan] columns={plan.columns}: is no section"
            + commandline.nearest(plan.columns, tuple(plan.lists))
        )
    places = [(row, column) for row, column, _ in plan.places()]
    for place in places:
        if places.count(place) > 1:
            raise InputError(
                f"{name}: two places of the table are called "
                f"{_where(*place)!r}; names of two lists are joined by ', '"
            )
    rows = tuple(dict.fromkeys(row for row, _ in places))
    if plan.reference is not None and plan.reference not in rows:
        raise InputError(
            f"{name}: [plan] reference={plan.reference}: is no row"
            + commandline.nearest(plan.reference, rows)
        )
