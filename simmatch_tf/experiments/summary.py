"""The tables and figures of a plan's finished runs, and what is left to run.

Nothing here imports TensorFlow.
"""

import collections
import pathlib
import statistics

from simmatch_tf import config as config_lib
from simmatch_tf import io, tables, terminal
from simmatch_tf.experiments import identity
from simmatch_tf.experiments import plan as plan_lib
from simmatch_tf.experiments import store as store_lib
from simmatch_tf.flags.errors import InputError
from simmatch_tf.reporting import comparison


def compare(
    plan: plan_lib.Plan, cells: list[plan_lib.Cell], store: store_lib.Store
) -> comparison.Comparison:
    """Compares the finished runs of a plan.

    No lead is given if the results of a column are not of the same images.
    """
    scores, images = [], collections.defaultdict(set)
    for cell in cells:
        finished = store.find(cell.config)
        if finished is None:
            continue
        scores.append(
            comparison.Score(
                row=cell.row,
                column=cell.column,
                seed=cell.seed,
                top1=finished.top1,
                student_top1=finished.student_top1,
                ema_top1=finished.ema_top1,
                steps=finished.steps,
                seconds=finished.seconds,
                baseline=finished.baseline,
            )
        )
        dataset = config_lib.base_name(cell.config.dataset)
        images[cell.column].add(
            (dataset, finished.scored_on, finished.test_images)
        )
    reference = plan.reference
    if reference is not None and any(len(each) > 1 for each in images.values()):
        terminal.warn(
            f"{plan.path}: no lead of {reference} is given: the results are "
            "not all of the same images"
        )
        reference = None
    return comparison.Comparison(
        title=plan.title,
        places=tuple((row, column) for row, column, _ in plan.places()),
        reference=reference,
        curves=plan.curves,
        scores=tuple(scores),
    )


def write(
    plan: plan_lib.Plan,
    cells: list[plan_lib.Cell],
    store: store_lib.Store,
    folder: pathlib.Path,
    page: str | None,
) -> str:
    """Writes table.md, table.csv, runs.csv and table.png, and into a page.

    Args:
        plan: The plan.
        cells: All of its runs.
        store: The store of finished runs.
        folder: The folder for the files.
        page: A Markdown file to insert the table into; see `check_page`.

    Returns:
        The table, and where it is written.

    Raises:
        InputError: A file cannot be written.
    """
    compared = compare(plan, cells, store)
    text = comparison.markdown(compared)
    io.make_folder(folder)
    files = {
        "table.md": text + "\n",
        "table.csv": comparison.table_csv(compared),
        "runs.csv": comparison.runs_csv(compared),
    }
    for name, content in files.items():
        io.write_text(folder / name, content)
    names = list(files)
    if compared.scores:
        from simmatch_tf.reporting import figures  # takes a second to import

        names.append("table.png")
        figures.save_comparison(compared, folder / names[-1])
    if page is not None:
        insert(page, plan.name, text)
    return (
        f"{text}\n\nIn {folder}: {', '.join(names)} ({len(compared.scores)} of "
        f"{len(cells)} runs)."
    )


def check_page(page: str | None, name: str) -> None:
    """Checks that a page has a place for a plan's table.

    Args:
        page: A Markdown file with <!-- NAME --> and <!-- /NAME --> in it.
        name: The plan's name.

    Raises:
        InputError: It does not exist, is not UTF-8, or has no such place.
    """
    if page is not None:
        _place(page, name)


def _place(page: str, name: str) -> tuple[str, int, int]:
    """Returns a page's text, and where in it a table begins and ends."""
    text = io.read_text(io.expand(page), f"--page={page}")
    marks = [f"<!-- {name} -->", f"<!-- /{name} -->"]
    start, end = map(text.find, marks)
    if any(text.count(mark) != 1 for mark in marks) or start > end:
        raise InputError(
            f"--page={page}: must have the lines {marks[0]} and {marks[1]}, "
            "once each"
        )
    return text, start + len(marks[0]), end


def insert(page: str, name: str, table: str) -> None:
    """Inserts a table into a page, whole or not at all; see `check_page`.

    Raises:
        InputError: The page cannot be read or written.
    """
    text, start, end = _place(page, name)
    line_end = "\r\n" if "\r\n" in text else "\n"
    table = f"\n{table}\n".replace("\n", line_end)
    path = io.expand(page).resolve()  # a link stays a link
    io.write_text(path, f"{text[:start]}{table}{text[end:]}")


def left(
    plan: plan_lib.Plan, cells: list[plan_lib.Cell], store: store_lib.Store
) -> str:
    """Returns a table of the runs that are left and how long they take.

    A run is expected to take as long as the finished runs of its place in the
    table did on average.
    """
    finished: dict[str, store_lib.Finished | None] = {}
    places: dict[str, list[str]] = {}
    for cell in cells:
        name = identity.name(cell.config)
        finished[name] = store.find(cell.config)
        places.setdefault(cell.title(seed=False), []).append(name)
    waiting = {name for name, result in finished.items() if result is None}
    total, hours, unknown = len(waiting), 0.0, 0
    rows = [["", "runs", "left", "s a run", "hours left"]]
    for title, names in places.items():
        own = waiting & {*names}
        waiting -= own  # a run of two places is trained once
        times = [finished[name].seconds for name in names if finished[name]]
        line = ["not known", "not known"]
        if times:
            seconds = statistics.mean(times)
            hours += len(own) * seconds / 3600
            line = [f"{seconds:,.0f}", f"{len(own) * seconds / 3600:,.1f}"]
        else:
            unknown += len(own)
        rows.append([title, f"{len(names)}", f"{len(own)}", *line])
    text = f"{plan.title}\n\n{tables.plain(rows)}\n\n{total} runs left"
    if total > unknown:
        text += f"; {total - unknown} of them take {hours:,.1f} hours in all"
    if unknown:
        text += f"; the time of {unknown} is not known until one has finished"
    return text + "."
