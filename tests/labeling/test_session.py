import itertools
import string

import pytest

from simmatch_tf.data import answers as answers_lib
from simmatch_tf.labeling import session as session_lib
from tests.labeling import helpers


@pytest.fixture
def place(tmp_path):
    place = helpers.Place(tmp_path)
    yield place
    place.writer.close()


class Person:
    """Answers what a session shows to one browser."""

    _requests = itertools.count()

    def __init__(self, session, name="annannann"):
        self.session, self.name = session, name

    def request(self):
        return f"{self.name}-{next(self._requests)}"

    def view(self, **options):
        return self.session.view(self.name, **options)

    def answer(self, name, *others, **options):
        current = self.view(**options)["current"]
        indices = [current["index"], *others]
        answer = name if name in ("none", "skip") else "class"
        class_name = name if answer == "class" else None
        was = [current["was"], *([None] * len(others))]
        self.session.answer(self.request(), indices, answer, class_name, was)
        return current["name"]

    def undo(self):
        self.session.undo(self.request())
        return (self.view()["current"] or {}).get("name")


def test_keys_are_letters_of_the_names():
    assert session_lib.keys(["cat", "cow", "dog", "Do", "7", "été"]) == [
        *("c", "o", "d", "1", "7", "t")
    ]


def test_keys_are_distinct_and_stay_when_a_class_is_added():
    names = [f"class {number}" for number in range(70)]
    keys = session_lib.keys(names)
    assert len(set(keys[:62])) == 62 and set(keys[62:]) == {""}
    assert set(keys[:62]) == {*string.ascii_letters, *string.digits}
    for count in (1, 20, 50):
        assert session_lib.keys(names[:count]) == keys[:count]


def test_answers_up_to_the_goal_then_beyond(place):
    person = Person(place.session)
    names = [person.answer("cat") for _ in range(10)]
    assert len(set(names)) == 10
    state = person.view()
    assert state["current"] is None and state["more"] and not state["waiting"]
    assert (state["done"], state["goal"]) == (10, 10)
    assert [person.answer("dog", beyond=True) for _ in range(2)]
    state = person.view(beyond=True)
    assert state["current"] is None and not state["more"]
    assert [each["count"] for each in state["classes"]] == [10, 2]


def test_goes_on_after_a_restart(place):
    first = [Person(place.session).answer("cat") for _ in range(3)]
    before = Person(place.session).view()
    person = Person(place.start(), "bobbobbob")
    assert person.view() == before
    rest = [person.answer("dog") for _ in range(7)]
    assert not set(first) & set(rest)
    assert len(answers_lib.read(place.log).labels) == 10


def test_undo_has_no_end(place):
    person = Person(place.session)
    names = [person.answer(n) for n in ("cat", "dog", "none", "skip", "cat")]
    # Of another process, and of another browser that has gone.
    person = Person(place.start(), "bobbobbob")
    for name in reversed(names):
        assert person.undo() == name
        assert person.view()["current"]["was"] is None
    state = person.view()
    assert not state["can_undo"] and not state["recent"]
    assert person.undo() == names[0]
    answers = answers_lib.read(place.log)
    assert not answers.labels and not answers.none and not answers.skipped


def test_undo_of_a_correction_restores_the_answer_before(place):
    person = Person(place.session)
    person.answer("cat")
    index = person.view()["recent"][0]["index"]
    place.session.answer(
        "annannann-a", [index], "class", "dog", [["class", "cat"]]
    )
    assert place.session.known(index) == ["class", "dog"]
    person.undo()
    assert place.session.known(index) == ["class", "cat"]
    # The same from the log alone; the next undo is of the first answer.
    person = Person(place.start(), "bobbobbob")
    person.undo()
    assert place.session.known(index) is None


def test_undo_of_a_grid_is_of_all_its_images(place):
    person = Person(place.session)
    name = person.answer("cat")
    person.answer("dog", *place.work.order[5:8])
    assert person.view()["done"] == 5
    person.undo()
    assert person.view()["done"] == 1
    person.undo()
    assert person.view()["current"]["name"] == name


def test_skipped_images_are_asked_about_at_the_end(place):
    person = Person(place.session)
    skipped = [person.answer("skip"), person.answer("skip")]
    state = person.view()
    assert (state["skipped"], state["done"]) == (2, 0)
    # With a list all of its images are to be answered.
    chosen = place.images.parent / "selected.csv"
    others = [n for n in place.work.names if n not in skipped][:2]
    chosen.write_text("\n".join(["file", *skipped, *others]))
    person = Person(place.start(goal=4, chosen=str(chosen)))
    names = [person.answer("cat") for _ in range(4)]
    assert names == [*others, *skipped]
    assert person.view()["current"] is None


def test_none_counts_and_an_answer_replaces_it(place):
    person = Person(place.session)
    name = person.answer("none")
    state = person.view()
    assert (state["done"], state["none"]) == (1, 1)
    index = state["recent"][0]["index"]
    assert state["recent"][0]["was"] == ["none", None]
    place.session.answer(
        "annannann-x", [index], "class", "cat", [["none", None]]
    )
    answers = answers_lib.read(place.log)
    assert answers.labels == {name: "cat"} and not answers.none


def test_the_last_ten_with_the_last_one_first(place):
    place.start(goal=12)
    person = Person(place.session)
    names = [person.answer("cat") for _ in range(12)]
    recent = [each["name"] for each in person.view()["recent"]]
    assert recent == names[:1:-1]


def test_a_request_that_is_sent_again_is_carried_out_once(place):
    person = Person(place.session)
    current = person.view()["current"]
    request = person.request()
    for _ in range(3):
        place.session.answer(
            request, [current["index"]], "class", "cat", [None]
        )
    assert len(answers_lib.read(place.log).lines) == 1
    person.answer("dog")
    request = person.request()
    for _ in range(2):
        place.session.undo(request)
    assert person.view()["done"] == 1
    for _ in range(2):
        assert place.session.add_class("annannann-new", "fox") == "fox"
    assert [c["name"] for c in person.view()["classes"]] == [
        "cat",
        "dog",
        "fox",
    ]


def test_two_browsers_never_get_the_same_image(place):
    ann, bob = (Person(place.session, name) for name in ("ann" * 3, "bob" * 3))
    names = []
    while ann.view()["current"] and bob.view()["current"]:
        a, b = ann.view()["current"], bob.view()["current"]
        assert a["name"] != b["name"]
        names += [ann.answer("cat"), bob.answer("dog")]
    assert len(names) == len(set(names)) == 10
    labels = answers_lib.read(place.log).labels
    assert [labels[name] for name in names] == ["cat", "dog"] * 5


def test_what_one_browser_loads_ahead_is_not_given_to_the_other(place):
    ann, bob = (Person(place.session, name) for name in ("ann" * 3, "bob" * 3))
    state = ann.view()
    mine = {state["current"]["index"], *state["ahead"]}
    assert len(mine) == 6
    other = bob.view()
    assert not mine & {other["current"]["index"], *other["ahead"]}


def test_the_last_image_of_a_browser_that_has_gone_comes_to_the_other(place):
    place.start(goal=12)
    ann, bob = (Person(place.session, name) for name in ("ann" * 3, "bob" * 3))
    last = ann.view()["current"]["name"]
    for _ in range(11):
        bob.answer("dog")
    state = bob.view()
    assert state["current"] is None and state["waiting"]
    place.clock.seconds += session_lib.LEASE_SECONDS - 1
    place.session.alive("ann" * 3)
    place.clock.seconds += 2
    assert bob.view()["waiting"]
    place.clock.seconds += session_lib.LEASE_SECONDS
    assert bob.view()["current"]["name"] == last
    # Another that closes the page frees it at once.
    carl = Person(place.session, "carlcarl")
    assert carl.view()["waiting"]
    place.session.leave("bob" * 3)
    assert carl.view()["current"]["name"] == last


def test_an_answer_to_what_another_has_answered_is_refused(place):
    ann, bob = (Person(place.session, name) for name in ("ann" * 3, "bob" * 3))
    index = ann.view()["current"]["index"]
    place.clock.seconds += session_lib.LEASE_SECONDS + 1
    assert bob.view()["current"]["index"] == index
    bob.answer("dog")
    with pytest.raises(session_lib.ConflictError, match="in another window"):
        place.session.answer(ann.request(), [index], "class", "cat", [None])
    assert place.session.known(index) == ["class", "dog"]
    assert len(answers_lib.read(place.log).lines) == 1
    assert ann.view()["current"]["index"] != index


def test_undo_is_of_ones_own_answers(place):
    ann, bob = (Person(place.session, name) for name in ("ann" * 3, "bob" * 3))
    mine = ann.answer("cat")
    bob.view()
    other = bob.answer("dog")
    assert ann.undo() == mine
    assert answers_lib.read(place.log).labels == {other: "dog"}
    ann.undo()  # there is nothing more of hers
    assert answers_lib.read(place.log).labels == {other: "dog"}


def test_undo_leaves_what_another_has_corrected(place):
    ann, bob = (Person(place.session, name) for name in ("ann" * 3, "bob" * 3))
    name = ann.answer("cat")
    index = ann.view()["recent"][0]["index"]
    bob.view()
    place.session.answer(
        "bobbobbob-x", [index], "class", "dog", [["class", "cat"]]
    )
    ann.undo()
    assert answers_lib.read(place.log).labels == {name: "dog"}


def test_images_that_cannot_be_shown_are_passed_over(place):
    person = Person(place.session)
    index = person.view()["current"]["index"]
    place.session.pass_over(index, "is empty")
    state = person.view()
    assert state["current"]["index"] != index
    name = place.work.names[index]
    assert state["unreadable"] == [{"name": name, "reason": "is empty"}]
    assert place.session.unreadable_files() == [
        f"{name} was passed over: is empty"
    ]
    place.start(goal=12).pass_over(index, "is empty")
    person = Person(place.session)
    assert person.view()["goal"] == 11
    for _ in range(11):
        person.answer("cat")
    assert person.view()["current"] is None


def test_clusters_without_a_label(place):
    chosen = place.images.parent / "selected.csv"
    rows = [f"{name},{i % 3}" for i, name in enumerate(place.work.names[:6])]
    chosen.write_text("\n".join(["file,cluster", *rows]))
    person = Person(place.start(goal=6, chosen=str(chosen)))
    assert person.view()["clusters"] == {"all": 3, "open": 3}
    person.answer("cat")
    person.answer("none")
    assert person.view()["clusters"] == {"all": 3, "open": 2}
    # Others than those of the list are counted apart.
    outside = place.work.order[6]
    place.session.answer("annannann-x", [outside], "class", "cat", [None])
    state = person.view()
    assert (state["done"], state["goal"], state["extra"]) == (2, 6, 1)


def test_guesses_are_those_of_the_model(place):
    guess, asked = {"class": "cat", "confidence": 0.9}, []

    def guesses(index):
        asked.append(index)
        return guess if index % 2 else None

    place.start(guess=guesses)
    state = place.session.view("annannann")
    assert state["has_guesses"]
    # Those of the next images are computed in time.
    assert {*asked} == {state["current"]["index"], *state["ahead"]}
    for index in (2, 3):
        shown = place.session.open_image(index)["guess"]
        assert shown == (guess if index % 2 else None)


def test_answers_of_another_program_can_be_undone(place):
    name = place.work.names[3]
    place.writer.append({"file": name, "answer": "class", "class": "cat"})
    place.writer.append({"file": name, "answer": "none"})
    person = Person(place.start())
    assert person.view()["done"] == 1
    person.undo()
    assert answers_lib.read(place.log).labels == {name: "cat"}
    person = Person(place.start(), "bobbobbob")
    assert person.undo() == name
    assert not person.view()["can_undo"]


def test_a_full_disk_changes_nothing(place, monkeypatch):
    person = Person(place.session)
    current = person.view()

    def append(*lines):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(place.writer, "append", append)
    with pytest.raises(OSError, match="No space"):
        person.answer("cat")
    assert person.view() == current


def test_summary(place):
    person = Person(place.session)
    for name in ("cat", "cat", "none", "skip"):
        person.answer(name)
    assert session_lib.summary(place.session.answers) == (
        "2 images have a class (cat 2, dog 0), 1 show none of these, 1 were "
        "skipped"
    )
