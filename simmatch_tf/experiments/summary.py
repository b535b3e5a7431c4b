"""A plan and its finished runs become tables, figures and files."""

import collections
import pathlib

from absl import logging

from simmatch_tf import config as config_lib
from simmatch_tf.experiments import costs as costs_lib
from simmatch_tf.experiments import finished, plan
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.reporting import comparison, tables


def title(cell: plan.Cell) -> str:
    """What to call a run."""
    return ", ".join(filter(None, (cell.row, cell.column, f"seed {cell.seed}")))


def line(cell: plan.Cell, found: finished.Finished) -> str:
    """What to say of a run that has just been finished."""
    top1 = f"{100 * found.top1:.2f} % top-1"
    return f"{title(cell)}: {top1}, {found.seconds:.0f} s"


def compare(
    what: plan.Plan, cells: list[plan.Cell], store: finished.Store
) -> comparison.Comparison:
    """The runs of a plan that are finished, as a table's.

    Without leads, where those of a column are not on the same images.
    """
    scores, images = [], collections.defaultdict(set)
    for cell in cells:
        found = store.find(cell.config)
        if found is not None:
            score = comparison.Score(
                row=cell.row,
                column=cell.column,
                seed=cell.seed,
                top1=found.top1,
                student_top1=found.student_top1,
                ema_top1=found.ema_top1,
                steps=found.steps,
                seconds=found.seconds,
            )
            scores.append(score)
            images[cell.column].add(
                (
                    config_lib.base_name(cell.config.dataset),
                    found.scored_on,
                    found.test_images,
                )
            )
    reference = what.reference
    if reference is not None and any(len(each) > 1 for each in images.values()):
        logging.warning(
            "%s: no lead of %s is given: the results are not all of the same "
            "images",
            what.path,
            reference,
        )
        reference = None
    return comparison.Comparison(
        title=what.title,
        places=tuple((row, column) for row, column, _ in what.places()),
        reference=reference,
        curves=what.curves,
        scores=tuple(scores),
    )


def write(
    what: plan.Plan,
    cells: list[plan.Cell],
    store: finished.Store,
    folder: pathlib.Path,
    page: str | None,
) -> str:
    """Writes table.md, table.csv, runs.csv, table.png, and into a page.

    Args:
        what: The plan.
        cells: All of its runs.
        store: Of finished ones.
        folder: For the files.
        page: See `check_page`.

    Returns:
        The table, and where it is written.

    Raises:
        InputError: A file cannot be written.
    """
    found = compare(what, cells, store)
    text = comparison.markdown(found)
    written = ["table.md", "table.csv", "runs.csv"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "table.md").write_text(text + "\n", encoding="utf-8")
        for name, content in (
            ("table.csv", comparison.table_csv(found)),
            ("runs.csv", comparison.runs_csv(found)),
        ):
            (folder / name).write_text(content, encoding="utf-8")
        where = f"{len(found.scores)} of {len(cells)} runs"
        if found.scores:
            from simmatch_tf.reporting import comparison_figure

            comparison_figure.save(found, folder / "table.png")
            written.append("table.png")
    except OSError as error:
        raise InputError(
            f"{error.filename or folder}: cannot be written ({error.strerror})"
        ) from None
    if page is not None:
        try:
            comparison.put_between(pathlib.Path(page), what.name, text)
        except OSError as error:
            raise InputError(
                f"--page={page}: cannot be written ({error.strerror})"
            ) from None
    return f"{text}\n\nIn {folder}: {', '.join(written)} ({where})."


def check_page(page: str | None, name: str) -> None:
    """Checks that a page has a place for a plan's table.

    Args:
        page: A Markdown file with <!-- NAME --> and <!-- /NAME --> in it.
        name: The plan's.

    Raises:
        InputError: It is not there, or has no such place.
    """
    if page is None:
        return
    path = pathlib.Path(page)
    if not path.is_file():
        raise InputError(f"--page={page}: no such file")
    try:
        # It is written back as UTF-8, which it must be.
        comparison.place(path.read_text(encoding="utf-8"), name)
    except UnicodeDecodeError:
        raise InputError(
            f"--page={page}: is no text in UTF-8; save it as such"
        ) from None
    except ValueError as error:
        raise InputError(f"--page={page}: {error}") from None


def costs(
    what: plan.Plan,
    cells: list[plan.Cell],
    store: finished.Store,
    *,
    progress: bool = False,
) -> str:
    """What is left to run, and how long it takes here, as text."""
    found = costs_lib.of(cells, store, progress=progress)
    rows = [["", "runs", "left", "steps", "s a run", "hours left", "from"]]
    for each in found:
        name = ", ".join(filter(None, (each.row, each.column)))
        rows.append(
            [
                name,
                str(each.runs),
                str(each.left),
                f"{each.steps:,}",
                f"{each.seconds:,.0f}",
                f"{each.left * each.seconds / 3600:,.1f}",
                each.measured,
            ]
        )
    left = sum(each.left for each in found)
    hours = sum(each.left * each.seconds for each in found) / 3600
    return (
        f"{what.title}\n\n{tables.table(rows)}\n\n{left} runs left, "
        f"{hours:,.1f} hours, one after the other on this machine. From runs: "
        "the mean of finished ones, as many at once as they were. From a step: "
        "a few steps on random images, one device, times their number; "
        "evaluation and input are not in it."
    )
