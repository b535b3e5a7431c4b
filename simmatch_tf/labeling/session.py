"""What the browsers of a labeling page do: ask, answer, undo, correct.

Knows nothing of HTTP. Each browser names itself by an identifier, and each
request by another, so that a request that is sent again after a lost response
is not carried out twice. An answer says which answer the browser believed the
image to have; if that is out of date, it is refused.
"""

import collections
import dataclasses
import string
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from simmatch_tf.data import answers as answers_lib
from simmatch_tf.labeling import worklist as worklist_lib

# Images that a browser loads ahead.
AHEAD = 5
# Answers that are shown to be corrected.
RECENT = 10
# A browser that was silent for so long no longer holds its image. It reports
# every 15 seconds.
LEASE_SECONDS = 60.0
_KEYS = string.ascii_lowercase + string.digits[1:] + "0"
_MORE_KEYS = string.ascii_uppercase


class ConflictError(Exception):
    """What the browser shows is out of date; the message says how."""


@dataclasses.dataclass
class _Browser:
    """What a browser holds.

    Attributes:
        seen: When it was last heard of, in seconds.
        current: Index of the image it shows, or None.
        ahead: Indices of those it loads ahead.
    """

    seen: float
    current: int | None = None
    ahead: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class _Action:
    """Answers that were given at once, and are undone at once.

    Attributes:
        request: Identifier of the request.
        changes: File → its answer before and after; see `Answers.of`.
    """

    request: str
    changes: dict[str, tuple[Any, Any]] = dataclasses.field(
        default_factory=dict
    )

    def browser(self) -> str:
        """Returns the identifier of the browser that gave them."""
        return self.request.rpartition("-")[0]


def keys(classes: Iterable[str]) -> list[str]:
    """Chooses a key for each class: a letter of its name, if one is free.

    Adding a class leaves the keys of the others as they are.

    Args:
        classes: Names.

    Returns:
        A letter or digit for each; "" for those beyond the last.
    """
    chosen: list[str] = []
    for name in classes:
        wanted = [c for c in name.lower() if c in _KEYS]
        free = [
            key
            for key in (*wanted, *_KEYS[26:], *_KEYS[:26], *_MORE_KEYS)
            if key not in chosen
        ]
        chosen.append(free[0] if free else "")
    return chosen


class Session:
    """The state of a labeling page, and its log.

    All methods may be called from any thread.

    Attributes:
        work: The images.
        goal: Number of images to answer.
        unreadable: Index → why the image cannot be shown.
    """

    def __init__(
        self,
        work: worklist_lib.Worklist,
        writer: answers_lib.Writer,
        goal: int,
        *,
        guess: Callable[[int], dict[str, Any] | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Goes on where the log ends.

        Args:
            work: The images.
            writer: Of the log.
            goal: Number of images to answer: of the list's first ones, if
                there is one.
            guess: Index → what a model takes the image for, with "class" and
                "confidence"; or None while it is not known.
            clock: Seconds.
        """
        self.work, self.goal = work, goal
        self.unreadable: dict[int, str] = {}
        self._writer, self._guess, self._clock = writer, guess, clock
        self._lock = threading.RLock()
        self._indices = {name: i for i, name in enumerate(work.names)}
        self._planned = work.order[: min(goal, work.listed)]
        self._browsers: dict[str, _Browser] = {}
        self._requests: set[str] = set()
        self._actions: list[_Action] = []
        self._lines = 0
        self._replay()

    @property
    def answers(self) -> answers_lib.Answers:
        """All that has been answered."""
        return self._writer.answers

    # ------------------------------------------------------------- requests --

    def view(self, browser: str, *, beyond: bool = False) -> dict[str, Any]:
        """Returns what a browser is to show; it then holds that image.

        Args:
            browser: Its identifier.
            beyond: Whether to go on when the goal is reached.
        """
        with self._lock:
            holder = self._seen(browser)
            waiting = self._open(beyond)
            self._deal(browser, holder, waiting)
            if self._guess is not None:
                for index in holder.ahead:
                    self._guess(index)  # has it computed in time
            return self._state(holder, waiting)

    def alive(self, browser: str) -> None:
        """Notes that a browser is still there."""
        with self._lock:
            self._seen(browser)

    def leave(self, browser: str) -> None:
        """Frees the image of a browser that has closed the page."""
        with self._lock:
            self._browsers.pop(browser, None)

    def answer(
        self,
        request: str,
        indices: Sequence[int],
        answer: str,
        class_name: str | None,
        was: Sequence[Any],
    ) -> None:
        """Answers about images, and returns when that is on the disk.

        Args:
            request: Identifier, of the form BROWSER-REQUEST.
            indices: The images.
            answer: "class", "none" or "skip".
            class_name: Of "class".
            was: The answer that the browser believed each to have; see
                `known`.

        Raises:
            ConflictError: Another browser has answered meanwhile.
            ValueError: There is no such class.
            OSError: It cannot be written; nothing has changed.
        """
        with self._lock:
            holder = self._seen(request.rpartition("-")[0])
            if request in self._requests:
                return
            for index, believed in zip(indices, was, strict=True):
                if self.known(index) != believed:
                    raise ConflictError(
                        f"{self.work.names[index]} was answered in another "
                        "window meanwhile; this answer was not taken"
                    )
            line = {"answer": answer, "request": request}
            if answer == "class":
                line["class"] = class_name
            self._write([{"file": self.work.names[i], **line} for i in indices])
            if holder.current in indices:
                holder.current = None

    def undo(self, request: str) -> None:
        """Takes back the last answers of a browser, or of one that has gone.

        An image that is to be asked about again is the one to show next.

        Args:
            request: Identifier; see `answer`.

        Raises:
            OSError: It cannot be written; nothing has changed.
        """
        with self._lock:
            browser = request.rpartition("-")[0]
            holder = self._seen(browser)
            action = self._last_of(browser)
            if request in self._requests or action is None:
                return
            lines = []
            for file, (before, after) in action.changes.items():
                if self.answers.of(file) != after:
                    continue  # corrected since, in another window
                answer, class_name = before or ("undo", None)
                line = {"file": file, "answer": answer, "request": request}
                if class_name is not None:
                    line["class"] = class_name
                lines.append({**line, "undoes": action.request})
            if lines:
                self._write(lines)
            else:
                self._actions.remove(action)
            for line in lines:
                index = self._indices.get(line["file"])
                if index is not None and self.is_open(index, browser):
                    holder.current = index
                    break

    def add_class(self, request: str, name: str) -> str:
        """Adds a class, and returns its name when it is on the disk.

        Raises:
            ValueError: It is no name, or exists.
            OSError: It cannot be written.
        """
        with self._lock:
            self._seen(request.rpartition("-")[0])
            if request in self._requests:
                return self.answers.classes[-1]
            name = self._writer.add_class(name, request=request)
            self._requests.add(request)
            return name

    def open_image(self, index: int) -> dict[str, Any]:
        """Returns what there is to say of an image."""
        with self._lock:
            guess = self._guess(index) if self._guess else None
            return {
                "index": index,
                "name": self.work.names[index],
                "was": self.known(index),
                "guess": guess,
            }

    def of_cluster(self, index: int) -> list[int]:
        """Returns the other images of an image's cluster, as the list says."""
        clusters = self.work.clusters
        if index not in clusters:
            return []
        return [
            other
            for other, cluster in clusters.items()
            if cluster == clusters[index] and other != index
        ]

    def is_open(self, index: int, browser: str) -> bool:
        """Returns whether an image has no answer and no other browser it."""
        with self._lock:
            return self._unanswered(index) and not self._is_held(index, browser)

    def pass_over(self, index: int, reason: str) -> None:
        """Leaves out an image that cannot be shown."""
        with self._lock:
            self.unreadable[index] = reason

    def unreadable_files(self) -> list[str]:
        """Returns the name of each image that cannot be shown, and why."""
        with self._lock:
            return [
                f"{self.work.names[index]} was passed over: {reason}"
                for index, reason in self.unreadable.items()
            ]

    def known(self, index: int) -> list[str | None] | None:
        """Returns an image's answer and class as JSON has them, or None."""
        answer = self.answers.of(self.work.names[index])
        return answer and list(answer)

    # -------------------------------------------------------- which is next --

    def _seen(self, browser: str) -> _Browser:
        now = self._clock()
        self._browsers = {
            name: each
            for name, each in self._browsers.items()
            if now - each.seen < LEASE_SECONDS
        }
        holder = self._browsers.setdefault(browser, _Browser(now))
        holder.seen = now
        return holder

    def _is_held(self, index: int, browser: str) -> bool:
        return any(
            each.current == index
            for name, each in self._browsers.items()
            if name != browser
        )

    def _unanswered(self, index: int) -> bool:
        """Whether an image can be asked about, perhaps not for the first."""
        name = self.work.names[index]
        return not (
            index in self.unreadable
            or name in self.answers.labels
            or name in self.answers.none
        )

    def _done(self) -> int:
        """Returns the number of images with an answer that count."""
        if self._planned:
            return sum(
                not self._unanswered(index) and index not in self.unreadable
                for index in self._planned
            )
        return len(self.answers.labels) + len(self.answers.none)

    def _open(self, beyond: bool) -> list[int]:
        """Returns the images to ask about, in order; skipped ones last."""
        if beyond or not self._planned:
            order = self.work.order
        else:
            order = self._planned
        if not beyond and not self._planned and self._done() >= self.goal:
            return []
        skipped = {name: i for i, name in enumerate(self.answers.skipped)}
        unanswered = [index for index in order if self._unanswered(index)]
        names = self.work.names
        again = [index for index in unanswered if names[index] in skipped]
        again.sort(key=lambda index: skipped[names[index]])
        return [i for i in unanswered if names[i] not in skipped] + again

    def _deal(
        self, browser: str, holder: _Browser, waiting: Sequence[int]
    ) -> None:
        """Gives a browser an image, and those to load ahead."""
        others = [b for n, b in self._browsers.items() if n != browser]
        held = {each.current for each in others}
        ahead = {index for each in others for index in each.ahead}
        free = [index for index in waiting if index not in held]
        # What another browser has loaded ahead is for that one, until there
        # is nothing else.
        free = [index for index in free if index not in ahead] or free
        current = holder.current
        if current is None or current in held or not self._unanswered(current):
            holder.current = free[0] if free else None
        behind = [index for index in free if index != holder.current]
        holder.ahead = behind[:AHEAD]

    # ------------------------------------------------------------ the state --

    def _state(
        self, holder: _Browser, waiting: Sequence[int]
    ) -> dict[str, Any]:
        answers = self.answers
        counts = answers.counts()
        answered = len(answers.labels) + len(answers.none)
        done = self._done()
        current = holder.current
        return {
            "classes": [
                {"name": name, "key": key, "count": counts[name]}
                for name, key in zip(
                    answers.classes, keys(answers.classes), strict=True
                )
            ],
            "none": len(answers.none),
            "skipped": len(answers.skipped),
            "done": done,
            "goal": self._reachable(),
            "extra": answered - done,
            "unreadable": [
                {"name": self.work.names[index], "reason": reason}
                for index, reason in self.unreadable.items()
            ],
            "clusters": self._clusters(),
            "current": None if current is None else self.open_image(current),
            "ahead": holder.ahead,
            # Other browsers have the last ones.
            "waiting": current is None and bool(waiting),
            "more": current is None and bool(self._open(True)),
            "recent": [
                {"index": index, "name": self.work.names[index]}
                | {"was": self.known(index)}
                for index in self._recent()
            ],
            "can_undo": bool(self._actions),
            "has_guesses": self._guess is not None,
        }

    def _reachable(self) -> int:
        """Returns the goal, less what cannot be shown."""
        if self._planned:
            return sum(i not in self.unreadable for i in self._planned)
        return min(self.goal, len(self.work) - len(self.unreadable))

    def _clusters(self) -> dict[str, int] | None:
        """Returns the number of clusters, and of those without a label."""
        if not self.work.clusters:
            return None
        labeled = {
            cluster
            for index, cluster in self.work.clusters.items()
            if self.work.names[index] in self.answers.labels
        }
        every = {*self.work.clusters.values()}
        return {"all": len(every), "open": len(every - labeled)}

    def _recent(self) -> list[int]:
        """Returns the images that were answered last, the last one first."""
        recent: dict[int, None] = {}
        for action in reversed(self._actions):
            for file in reversed(action.changes):
                index = self._indices.get(file)
                if index is not None and self.known(index) is not None:
                    recent[index] = None
                if len(recent) == RECENT:
                    return list(recent)
        return list(recent)

    # ---------------------------------------------------- the log, and undo --

    def _write(self, lines: Sequence[dict[str, Any]]) -> None:
        """Writes lines of one request."""
        before = {line["file"]: self.answers.of(line["file"]) for line in lines}
        self._writer.append(*lines)
        for line in lines:
            self._note(line, before[line["file"]])

    def _replay(self) -> None:
        """Finds out what can be undone, and which requests were carried out."""
        current: dict[str, Any] = collections.defaultdict(lambda: None)
        for line in self.answers.lines:
            if line["answer"] == "add_class":
                self._requests.add(line.get("request"))
                continue
            file, answer = line["file"], line["answer"]
            self._note(line, current[file])
            current[file] = (
                None if answer == "undo" else (answer, line.get("class"))
            )

    def _note(self, line: dict[str, Any], before: Any) -> None:
        """Notes a line of the log, and the answer before it."""
        self._lines += 1
        # Other programs may write answers without an identifier.
        request = line.get("request") or f"line-{self._lines}"
        self._requests.add(request)
        if "undoes" in line:
            self._actions = [
                each for each in self._actions if each.request != line["undoes"]
            ]
            return
        if not self._actions or self._actions[-1].request != request:
            self._actions.append(_Action(request))
        after = (line["answer"], line.get("class"))
        self._actions[-1].changes[line["file"]] = (before, after)

    def _last_of(self, browser: str) -> _Action | None:
        """Returns the last action of a browser, or of one that has gone."""
        for action in reversed(self._actions):
            owner = action.browser()
            if owner == browser or owner not in self._browsers:
                return action
        return None


def summary(answers: answers_lib.Answers) -> str:
    """Returns a line on what has been answered."""
    counts = ", ".join(
        f"{name} {count}" for name, count in answers.counts().items()
    )
    text = f"{len(answers.labels)} images have a class"
    text += f" ({counts})" * bool(counts)
    text += f", {len(answers.none)} show none of these"
    text += f", {len(answers.skipped)} were skipped"
    return text
