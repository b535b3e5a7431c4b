r"""Labels images by hand, on a page in the browser, by one key an image.

python -m simmatch_tf.label --images=photos --classes=cat,dog

Each answer is kept in labels.jsonl before the next image is shown; the same
command goes on where it was stopped. Then train on the answers:

python -m simmatch_tf.train --flagfile=configs/folder.cfg --data_dir=photos \
    --labels_from=labels.jsonl
"""

import collections
import dataclasses
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from simmatch_tf import io, preflight, signals, terminal
from simmatch_tf.data import answers as answers_lib
from simmatch_tf.data import viewing
from simmatch_tf.flags import command, commandline
from simmatch_tf.flags.commandline import flag
from simmatch_tf.flags.errors import InputError
from simmatch_tf.labeling import guesses as guesses_lib
from simmatch_tf.labeling import lookalikes as lookalikes_lib
from simmatch_tf.labeling import server as server_lib
from simmatch_tf.labeling import session as session_lib
from simmatch_tf.labeling import worklist as worklist_lib
from simmatch_tf.training import workdir

# Values of --order.
CHOSEN, RANDOM = "chosen", "random"


@dataclasses.dataclass(frozen=True)
class LabelConfig(commandline.Flags):
    """The flags of `python -m simmatch_tf.label`."""

    images: str | None = flag(
        None,
        "Folder of the images, read with its subfolders. Images in "
        "labeled/CLASS have a class already; those in test/ or val/ are left "
        "for measuring.",
        required="the folder of the images",
    )
    list: str | None = flag(
        None,
        "CSV file whose column `file` names the images to label, in the order "
        "in which to ask, as simmatch_tf.select writes it. Default: see "
        "--order.",
    )
    order: str = flag(
        CHOSEN,
        "Which images come first without --list: those that simmatch_tf.select "
        "chooses, by the features of --model or by pixels, which takes a "
        "minute for some thousand images the first time; or an order that "
        "looks random, at once.",
        choices=(CHOSEN, RANDOM),
    )
    labels: str | None = flag(
        None,
        "File of the answers, continued if it exists. Default: labels.jsonl "
        "beside the folder of the images.",
    )
    classes: str | None = flag(
        None,
        "Names of classes, with commas between them. More can be added on the "
        "page. Default: those of the answers, and of the folders in labeled/.",
    )
    model: str | None = flag(
        None,
        "Folder of a run or an export, whose guess is shown beside each image. "
        "Default: no guesses.",
    )
    count: int | None = flag(
        None,
        "Number of images to label. Default: all of --list, or "
        f"{worklist_lib.COUNT}.",
        low=1,
    )
    host: str = flag(
        "127.0.0.1",
        "Address to listen on. Any other than this machine's own lets others "
        "see the images, and answer.",
    )
    port: int = flag(
        0, "Port to listen on; 0 takes any free port.", low=0, high=65535
    )

    def check(self) -> None:
        """Names must be names; the file must be in a folder that exists."""
        if ":" not in self.host:
            commandline.check_address("host", self.host, f"{self.host}:1")
        if self.list is not None and self.order != CHOSEN:
            raise InputError(
                f"--order={self.order} and --list={self.list}: a list has an "
                "order of its own; give one of the two"
            )
        if self.labels is not None:
            commandline.check_output_file("labels", self.labels, (".jsonl",))
        names: tuple[str, ...] = ()
        for name in self.class_names():
            try:
                names += (answers_lib.class_name(name, names),)
            except ValueError as error:
                raise InputError(f"--classes={self.classes}: {error}") from None

    def class_names(self) -> tuple[str, ...]:
        """Returns the names in --classes."""
        return () if self.classes is None else tuple(self.classes.split(","))


def _labels_path(flags: LabelConfig) -> str:
    if flags.labels is not None:
        return str(io.expand(flags.labels))
    folder = os.path.abspath(io.expand(flags.images))
    return os.path.relpath(f"{os.path.dirname(folder)}/labels.jsonl")


def _work(
    flags: LabelConfig, labels: str, chosen: str | None
) -> worklist_lib.Worklist:
    """Finds the images, and in what order to ask.

    Args:
        flags: The flags.
        labels: The file of the answers.
        chosen: The list of images to begin with, or None.

    Raises:
        InputError: See `worklist.make`.
    """
    classes = [*flags.class_names()]
    if os.path.exists(labels) and os.path.getsize(labels):
        classes += answers_lib.read(labels).classes
    own = chosen is not None and flags.list is None
    return worklist_lib.make(flags.images, chosen, classes, missing=own)


def _list_path(labels: str) -> str:
    """Returns the file that keeps the images of a round."""
    return os.path.splitext(labels)[0] + ".selected.csv"


def _check_list(labels: str) -> None:
    """Checks that the list of a round would take no other file's place.

    Raises:
        InputError: It would.
    """
    from simmatch_tf.labeling import selected

    path = _list_path(labels)
    try:
        selected.check_output(io.expand(path), path)
    except InputError:
        raise InputError(
            f"{path}: exists, and is no list of images to label, which would "
            "be kept there; move it, or give --labels another name, or a "
            "--list or --order=random"
        ) from None


def _round(
    flags: LabelConfig,
    labels: str,
    work: worklist_lib.Worklist,
    answers: answers_lib.Answers,
) -> str | None:
    """Returns the list of this round, chosen now or when it was begun.

    It is kept beside the answers. A round is over when each of its images has
    an answer; the next start begins another.

    Returns:
        The list's file; None if all images have an answer.

    Raises:
        InputError: Images cannot be chosen, or the list cannot be written.
    """
    from simmatch_tf.labeling import choosing, selected

    path = _list_path(labels)
    done = answers.labels.keys() | answers.none
    left = set(work.names) - done
    if os.path.exists(path):
        listed = worklist_lib.files(path)
        waiting = left.intersection(listed)
        if waiting:
            terminal.say(
                f"going on with {path}: {len(waiting)} of {len(listed)} images "
                "are left; remove it to choose others"
            )
            return path
    if not left:
        return None
    choice = choosing.choose(
        choosing.Request(
            flags.images,
            flags.count or worklist_lib.COUNT,
            labels_from=labels if answers.labels else None,
            model=flags.model,
            among=left,
            fewer=True,
        )
    )
    selected.write_table(io.expand(path), choice.rows)
    for fact in choice.facts:
        terminal.say(fact)
    terminal.say(f"the images of this round are in {path}")
    return path


def _guesses(
    flags: LabelConfig, work: worklist_lib.Worklist
) -> tuple[guesses_lib.Guesses | None, list[str]]:
    """Loads the model; returns its guesses and its classes."""
    if flags.model is None:
        return None, []
    preflight.start(fast=False)
    from simmatch_tf.serving import loading, prediction

    terminal.say(f"loading {flags.model}")
    model = loading.open_model(flags.model)

    def classify(paths: Sequence[str]) -> Iterable[tuple[int, str, float]]:
        return prediction.guesses(model, paths)

    return guesses_lib.Guesses(classify, work.paths), model.class_names


def _next_command(flags: LabelConfig, labels: str) -> str:
    words = ["python", "-m", "simmatch_tf.train"]
    words += ["--flagfile=configs/folder.cfg", f"--data_dir={flags.images}"]
    words.append(f"--labels_from={labels}")
    if flags.model is not None and workdir.Workdir(flags.model).started():
        # The run of this round, beside that of the last one.
        name, number = re.fullmatch(
            r"(.*?)(?:-(\d+))?/*", flags.model, re.DOTALL
        ).groups()
        words.append(f"--workdir={name}-{int(number or 1) + 1}")
    return shlex.join(words)


def _print_next(
    flags: LabelConfig, labels: str, answers: answers_lib.Answers
) -> None:
    """Prints the command that trains, and what it still needs."""
    counts = collections.Counter(answers.labels.values())
    if not counts:
        return
    print(f"Next:\n{_next_command(flags, labels)}")
    once = [name for name, count in counts.items() if count == 1]
    if len(counts) == 1 or once:
        print(
            "It needs two classes or more, and two images of each, unless "
            "labeled/ or test/ has some"
            + f"; of {', '.join(once[:5])} there is one" * bool(once)
            + "."
        )


def _address(host: str, port: int, token: str) -> str:
    if host in ("0.0.0.0", "::"):
        import socket

        host = socket.gethostname()
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/#token={token}"


def _serve(
    flags: LabelConfig,
    server: server_lib.Server,
    work: worklist_lib.Worklist,
    writer: answers_lib.Writer,
    guesses: guesses_lib.Guesses | None,
) -> None:
    """Serves the page until Ctrl-C."""
    count = flags.count or work.listed or worklist_lib.COUNT
    session = session_lib.Session(work, writer, count, guess=guesses)
    lookalikes = lookalikes_lib.LookAlikes(work.paths, work.order)
    folder = io.printable(os.path.basename(work.folder) or work.folder)
    about: dict[str, Any] = {
        "folder": folder,
        "labels": io.printable(os.path.basename(writer.path)),
        "next_command": io.printable(_next_command(flags, _labels_path(flags))),
    }
    app = server_lib.App(session, lookalikes, host=flags.host, about=about)
    if not server_lib.is_loopback(flags.host):
        terminal.warn(
            f"--host={flags.host}: whoever can reach this machine and has the "
            "address sees the images and can answer, and the connection is not "
            "encrypted; without --host, only this machine can"
        )
    print(f"{len(work):,} images; answers go to {_labels_path(flags)}")
    print(f"Open {_address(flags.host, server.port, app.token)}", flush=True)
    terminal.say("Ctrl-C ends; the same command goes on.")
    try:
        with viewing.silent_pillow():
            if guesses is not None:
                guesses.start()
            server.serve(app)
    except KeyboardInterrupt:  # the way to end it
        pass
    finally:
        lookalikes.stop()
        if guesses is not None:
            guesses.stop()
    for reason in session.unreadable_files():
        terminal.warn(reason)


def main(flags: LabelConfig) -> None:
    """Serves the page until it is told to stop; prints what was answered."""
    signals.sigterm_as_ctrl_c()
    labels = _labels_path(flags)
    if flags.model is not None:
        preflight.kind_of_model("model", flags.model)
    if flags.list is None and flags.order == CHOSEN:
        _check_list(labels)
    work = _work(flags, labels, flags.list)
    classes = dict.fromkeys([*work.classes, *flags.class_names()])
    with (
        server_lib.Server(flags.host, flags.port) as server,
        answers_lib.Writer(
            labels, images=work.folder, classes=classes
        ) as writer,
    ):
        if flags.list is None and flags.order == CHOSEN:
            chosen = _round(flags, labels, work, writer.answers)
            work = _work(flags, labels, chosen)
        guesses, known = _guesses(flags, work)
        if not writer.answers.classes:
            for name in known:
                writer.add_class(name)
        _serve(flags, server, work, writer, guesses)
        print(f"\n{session_lib.summary(writer.answers)} ({labels}).")
        _print_next(flags, labels, writer.answers)


if __name__ == "__main__":
    command.run(main, LabelConfig)
