"""The page in a real Chromium, driven by keyboard and mouse."""

import pathlib

import chromium
import pytest

from simmatch_tf.data import answers as answers_lib
from tests.labeling import helpers, processes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.extra,
    pytest.mark.skipif(chromium.PROGRAM is None, reason="needs Chromium"),
]
READY = "state && !busy && (view ? shown === view.index : state)"
CONTRASTS = pathlib.Path(__file__).with_name("contrasts.js")


@pytest.fixture
def photos(tmp_path):
    return helpers.write_images(tmp_path / "photos", 60)


@pytest.fixture
def log(photos):
    return photos.with_name("labels.jsonl")


@pytest.fixture
def browser(tmp_path):
    with chromium.Browser(tmp_path / "profile") as browser:
        yield browser
        # Neither an exception nor a refusal of the content policy.
        wrong = [
            event
            for event in browser.events
            if event["method"] == "Runtime.exceptionThrown"
            or "Content Security" in str(event)
        ]
        assert not wrong


def serve(photos, *words):
    labels = photos.with_name("labels.jsonl")
    return processes.Process(
        photos, "--classes=cat,dog", f"--labels={labels}", *words
    )


class Person:
    """Somebody at a page, who remembers what was answered."""

    def __init__(self, browser, process, answers=None, **options):
        self.page = chromium.Page(browser, process.address, **options)
        self.answers = {} if answers is None else answers
        self.ready()

    def ready(self):
        self.page.wait(READY)

    def name(self):
        return self.page.value("view && view.name")

    def done(self):
        return self.page.value("state.done")

    def press(self, key, class_name):
        """Answers by a key."""
        name = self.name()
        self.page.key(key)
        self.ready()
        self.answers[name] = class_name
        return name


def test_forty_images_by_hand(photos, log, tmp_path):
    answers = {}
    with (
        serve(photos) as process,
        chromium.Browser(tmp_path / "first") as browser,
    ):
        person = Person(browser, process, answers)
        page = person.page
        for number in range(10):
            person.press(*(("c", "cat"), ("d", "dog"))[number % 2])
        # Undo, by two keys; the images are asked about again.
        last = person.name()
        page.key("Backspace")
        person.ready()
        page.key("z", ctrl=True)
        person.ready()
        assert person.done() == 8
        for _ in range(2):
            assert person.name() in answers
            person.press("d", "dog")
        assert person.name() == last
        # By the mouse.
        name = person.name()
        page.click("#classes button", 1)
        person.ready()
        answers[name] = "dog"
        # A class is added on the way, and is this image's.
        name = person.name()
        page.key("+")
        page.type("fox")
        page.key("Enter")
        page.wait("state.classes.length === 3 && !busy && view.was === null")
        page.wait("state.done === 12")
        person.ready()
        answers[name] = "fox"
        person.press("f", "fox")
        person.press("-", None)
        skipped = person.name()
        page.key(" ")
        person.ready()
        assert person.name() != skipped
        # Four images that look alike, by one key.
        page.wait(
            "call('api/like', {browser: BROWSER, image: view.index})"
            ".then((r) => r.content.seen === r.content.all)"
        )
        page.key(".")
        page.wait("grid && !busy")
        for place in (1, 2, 3):
            page.click("#like_images button", place)
        names = page.value("grid.filter((e) => e.ticked).map((e) => e.name)")
        assert len(names) == 4
        assert len({int(name[:3]) % 4 for name in names}) == 1
        page.key("c")
        page.wait("!grid")
        person.ready()
        answers |= dict.fromkeys(names, "cat")
        assert person.done() == len(answers) == 18
        # One of the last ten is corrected by a click.
        name = page.value("state.recent[6].name")
        asked = person.name()
        page.click("#recent button", 6)
        page.wait("view.correcting")
        person.ready()
        assert person.name() == name
        person.press("f", "fox")
        assert person.name() == asked and person.done() == 18
        # Both are killed; what has been answered is there.
        process.kill()
        page.key("c")
        page.wait("!document.getElementById('notice').hidden")
        assert "does not answer" in page.text("#notice")
    labels = {name: value for name, value in answers.items() if value}
    assert answers_lib.read(log).labels == labels
    with (
        serve(photos) as process,
        chromium.Browser(tmp_path / "second") as browser,
    ):
        person = Person(browser, process, answers)
        page = person.page
        assert person.done() == 18
        assert person.name() == asked
        while person.name():
            person.press("d", "dog")
        assert person.done() == 40
        assert "Done: 40 of 40" in page.text("#finished")
        assert f"--data_dir={photos}" in page.text("#command")
        page.click("#more")
        page.wait("view")
        person.ready()
        person.press("c", "cat")
        status, printed, _ = process.end()
    assert status == 0 and "fox" in printed
    written = answers_lib.read(log)
    labels = {name: value for name, value in answers.items() if value}
    assert written.labels == labels and len(labels) == 40
    assert written.classes == ["cat", "dog", "fox"]
    assert len(written.none) == 1 and written.skipped == [skipped]


def test_two_browsers_at_once(photos, log, tmp_path):
    with (
        serve(photos, "--count=20") as process,
        chromium.Browser(tmp_path / "ann") as first,
        chromium.Browser(tmp_path / "bob") as second,
    ):
        ann, bob = Person(first, process), Person(second, process)
        while ann.name() and bob.name():
            names = {ann.name(), bob.name()}
            assert len(names) == 2
            # Both keys are pressed before either answer is waited for.
            ann.page.key("c")
            bob.page.key("d")
            ann.ready()
            bob.ready()
            ann.answers[[*names][0]] = bob.answers[[*names][1]] = None
        written = answers_lib.read(log)
        assert len(written.labels) == len(written.lines) == 20
        assert written.counts() == {"cat": 10, "dog": 10}
        given = {*ann.answers, *bob.answers}
        assert given == {*written.labels}
        # One undoes its own answer, not that of the other.
        ann.page.key("Backspace")
        ann.ready()
        assert answers_lib.read(log).counts() == {"cat": 9, "dog": 10}


def test_a_lost_response_labels_one_image(photos, log, browser):
    with serve(photos) as process:
        person = Person(browser, process)
        person.page.value(
            "{ const real = fetch; let lost = 0; window.fetch = async (...a) =>"
            " { const r = await real(...a); if (a[0] === 'api/answer' && "
            "lost++ < 2) throw new TypeError('lost'); return r; }; 0 }"
        )
        name = person.name()
        person.page.key("c")
        person.page.wait("state.done === 1")
        person.ready()
        assert answers_lib.read(log).labels == {name: "cat"}
        assert len(answers_lib.read(log).lines) == 1
        person.press("d", "dog")
        assert len(answers_lib.read(log).lines) == 2


def test_keys(photos, log, browser):
    with serve(photos, "--classes=cat,dog,7") as process:
        person = Person(browser, process)
        page = person.page
        # A key that is held down answers once; others do nothing.
        press = {"key": "c", "windowsVirtualKeyCode": 67, "text": "c"}
        for repeat in (True, True):
            page.send(
                "Input.dispatchKeyEvent",
                type="keyDown",
                autoRepeat=repeat,
                **press,
            )
        for key in ("x", "Enter", "Escape", "Tab"):
            page.key(key)
        person.ready()
        assert person.done() == 0
        page.value("document.activeElement.blur()")
        # Keyboards without Latin letters, and with the capitals on.
        page.send(
            "Input.dispatchKeyEvent",
            type="keyDown",
            key="с",
            code="KeyC",
            text="с",
        )
        page.wait("state.done === 1")
        person.ready()
        page.key("D")
        page.wait("state.done === 2")
        person.ready()
        page.key("7")
        page.wait("state.done === 3")
        person.ready()
        assert answers_lib.read(log).counts() == {"cat": 1, "dog": 1, "7": 1}
        # A button that has the focus is pressed by the space bar.
        page.value("document.querySelector('#classes button').focus()")
        page.key(" ")
        page.wait("state.done === 4")
        person.ready()
        assert answers_lib.read(log).counts()["cat"] == 2
        assert not answers_lib.read(log).skipped


def test_images_that_cannot_be_read(photos, browser):
    for path in sorted(photos.iterdir())[:50]:
        path.write_text("text")
    with serve(photos, "--count=60") as process:
        person = Person(browser, process)
        for _ in range(10):
            person.press("c", "cat")
        assert person.name() is None
        assert "Done: 10 of 10" in person.page.text("#finished")
        assert "50 cannot be read" in person.page.text("#remarks")
        assert "is no JPEG" in person.page.text("#notice")


def test_a_page_with_a_wrong_token_shows_nothing(photos, browser):
    with serve(photos) as process:
        start, _, token = process.address.partition("token=")
        for address in (f"{start}token=x{token[1:]}x", start.rstrip("#")):
            page = chromium.Page(browser, address)
            page.wait("!document.getElementById('notice').hidden")
            assert "open the" in page.text("#notice")
            assert page.value("state") is None


def test_readable_narrow_and_wide_light_and_dark(photos, browser):
    with serve(photos) as process:
        person = Person(browser, process)
        page = person.page
        for key in "cdc-":
            person.press(key, None)
        for width in (360, 1280):
            page.resize(width, 740)
            for dark in (False, True):
                page.dark(dark)
                fits = "document.documentElement.scrollWidth <= innerWidth"
                assert page.value(fits)
                assert page.value(CONTRASTS.read_text()) == []
        # A planted fault is seen.
        page.dark(False)
        page.value("document.getElementById('name').style.color = '#888'; 0")
        assert page.value(CONTRASTS.read_text())[0][0] == person.name()
        page.value("document.getElementById('name').style.color = ''; 0")
        page.key(".")
        page.wait("grid && !busy")
        for width in (360, 1280):
            page.resize(width, 740)
            dialog = "document.getElementById('like_dialog')"
            assert page.value(f"{dialog}.scrollWidth <= {dialog}.clientWidth")
            assert page.value(CONTRASTS.read_text()) == []
        page.key("Escape")
        # What a screen reader is told of each button and image.
        tree = page.send("Accessibility.getFullAXTree")["nodes"]
        named = [
            (node["role"]["value"], node.get("name", {}).get("value"))
            for node in tree
            if not node["ignored"]
            and node["role"]["value"] in ("button", "image", "progressbar")
        ]
        assert all(name for _, name in named), named
        assert ("button", "cat, 2 images") in named
        assert ("progressbar", "4 of 40") in named
        assert any(name.startswith("Correct 0") for _, name in named)
