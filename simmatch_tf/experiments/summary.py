"""The tables and figures of a plan's finished runs, and what is left to run.

Nothing here imports TensorFlow.
"""

import collections
import pathlib
import shutil
import statistics

from absl import logging

from simmatch_tf import config as config_lib
from simmatch_tf import io, tables
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
            )
        )
        dataset = config_lib.base_name(cell.config.dataset)
        images[cell.column].add(
            (dataset, finished.scored_on, finished.test_images)
        )
    reference = plan.reference
    if reference is not None and any(len(each) > 1 for each in images.values()):
        logging.warning(
            "%s: no lead of %s is given: the results are not all of the same "
            "images",
            plan.path,
            reference,
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror})"
        ) from None
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
        insert(io.expand(page), plan.name, text)
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
    if page is None:
        return
    path = io.expand(page)
    if not path.is_file():
        raise InputError(f"--page={page}: no such file")
    try:
        # It is written back as UTF-8, so it must be UTF-8.
        place(path.read_text(encoding="utf-8"), name)
    except UnicodeDecodeError:
        raise InputError(
            f"--page={page}: is no text in UTF-8; save it as UTF-8"
        ) from None
    except ValueError as error:
        raise InputError(f"--page={page}: {error}") from None


def place(text: str, name: str) -> tuple[int, int]:
    """Returns where a table goes: from <!-- NAME --> to <!-- /NAME -->.

    Args:
        text: Text of the page.
        name: Name of the table.

    Raises:
        ValueError: The comments are not in it once each and in this order.
    """
    marks = [f"<!-- {name} -->", f"<!-- /{name} -->"]
    start, end = map(text.find, marks)
    if any(text.count(mark) != 1 for mark in marks) or start > end:
        raise ValueError(
            f"must have the lines {marks[0]} and {marks[1]}, once each"
        )
    return start + len(marks[0]), end


def insert(path: pathlib.Path, name: str, table: str) -> None:
    """Inserts a table into a page, whole or not at all; see `place`.

    Raises:
        InputError: The page cannot be read or written.
    """
    path = path.resolve()  # a link stays a link
    try:
        with path.open(encoding="utf-8", newline="") as file:
            page = file.read()
        line_end = "\r\n" if "\r\n" in page else "\n"
        start, end = place(page, name)
        table = f"\n{table}\n".replace("\n", line_end)
        new = f"{page[:start]}{table}{page[end:]}"
        if new == page:
            return
        with io.replacing(path) as temporary:
            temporary.write_text(new, encoding="utf-8", newline="")
            shutil.copymode(path, temporary)
    except OSError as error:
        raise InputError(
            f"--page={path}: cannot be written ({error.strerror})"
        ) from None


def left(
    plan: plan_lib.Plan, cells: list[plan_lib.Cell], store: store_lib.Store
) -> str:
    """Returns a table of the runs that are left and how long they take.

    A run is expected to take as long as the finished runs of its place in the
    table did on average, or else those of its algorithm in this plan.
    """
    places: dict[tuple[str, str], list[plan_lib.Cell]] = {}
    times: dict[tuple, list[float]] = collections.defaultdict(list)
    seen, missing = set(), set()
    for cell in cells:
        places.setdefault((cell.row, cell.column), []).append(cell)
        finished, name = store.find(cell.config), identity.name(cell.config)
        if finished is None:
            missing.add(name)
        else:
            times[cell.row, cell.column].append(finished.seconds)
            if name not in seen:  # a run of two places counts once
                times[cell.config.algorithm,].append(finished.seconds)
        seen.add(name)
    rows = [["", "runs", "left", "s a run", "hours left", "mean of"]]
    hours, known, unknown = 0.0, 0, 0
    for key, members in places.items():
        names = missing & {identity.name(cell.config) for cell in members}
        missing -= names
        algorithm = members[0].config.algorithm
        source = "these runs" if key in times else algorithm
        seconds = times.get(key) or times.get((algorithm,))
        line = ["not known", "not known", ""]
        if seconds:
            mean = statistics.mean(seconds)
            hours += len(names) * mean / 3600
            known += len(names)
            line = [f"{mean:,.0f}", f"{len(names) * mean / 3600:,.1f}", source]
        else:
            unknown += len(names)
        title = members[0].title(seed=False)
        rows.append([title, str(len(members)), str(len(names)), *line])
    text = f"{plan.title}\n\n{tables.plain(rows)}\n\n"
    text += f"{known + unknown} runs left"
    if known:
        some = f"; {known} of them take" if unknown else ","
        text += (
            f"{some} {hours:,.1f} hours one after the other, as measured on "
            "finished runs"
        )
    if unknown:
        rest = f"the other {unknown}" if known else "they"
        text += f"; how long {rest} take is not known until one has finished"
    return text + "."
