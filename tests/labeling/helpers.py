"""Folders, sessions and clients for tests of the labeling page."""

import itertools

import PIL.Image
import werkzeug.test

from simmatch_tf.data import answers as answers_lib
from simmatch_tf.labeling import lookalikes as lookalikes_lib
from simmatch_tf.labeling import server, session, worklist

TOKEN = "the-token"
BASE = "http://127.0.0.1:5000"
_COLOURS = ("red", "green", "blue", "white")


def write_images(folder, count, *, ending="png", side=8):
    """Writes 000.png, 001.png …, whose colours take turns."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        colour = _COLOURS[number % len(_COLOURS)]
        image = PIL.Image.new("RGB", (side, side), colour)
        image.save(folder / f"{number:03}.{ending}")
    return folder


class Clock:
    """A clock that a test sets."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


class Place:
    """A folder of images with its log, and a session that may be restarted."""

    def __init__(self, folder, count=12, **options):
        self.images = write_images(folder / "photos", count)
        self.log = folder / "labels.jsonl"
        self.clock = Clock()
        self.options = options
        self.writer = None
        self.start()

    def start(self, *, goal=10, chosen=None, classes=("cat", "dog"), **options):
        if self.writer is not None:
            self.writer.close()
        self.work = worklist.make(str(self.images), chosen)
        self.writer = answers_lib.Writer(
            self.log, images=self.images, classes=classes
        )
        self.session = session.Session(
            self.work, self.writer, goal, clock=self.clock, **options
        )
        return self.session

    def client(self, **options):
        lookalikes = lookalikes_lib.LookAlikes(self.work.paths, self.work.order)
        options = {"host": "127.0.0.1", "token": TOKEN, "about": {}} | options
        app = server.App(self.session, lookalikes, **options)
        return Client(werkzeug.test.Client(app))


class Client:
    """A browser, as far as the server knows."""

    _names = itertools.count()

    def __init__(self, client):
        self.client = client
        self.browser = f"browser{next(self._names)}"
        self._requests = itertools.count()

    def other(self):
        """Returns another browser of the same server."""
        return Client(self.client)

    def request(self):
        return f"{self.browser}-{next(self._requests)}"

    def get(self, path, **headers):
        headers = {server.TOKEN_HEADER: TOKEN} | headers
        return self.client.get(path, base_url=BASE, headers=headers)

    def post(self, path, body, **headers):
        headers = {server.TOKEN_HEADER: TOKEN} | headers
        return self.client.post(path, base_url=BASE, headers=headers, json=body)

    def view(self, **body):
        response = self.post("/api/view", {"browser": self.browser, **body})
        assert response.status_code == 200, response.text
        return response.json

    def answer(self, state, name, *, request=None, images=None, **body):
        """Answers the image that a state shows; returns the response."""
        images = images or [state["current"]]
        return self.post(
            "/api/answer",
            {
                "request": request or self.request(),
                "images": [each["index"] for each in images],
                "was": [each["was"] for each in images],
                "answer": "class" if name not in ("none", "skip") else name,
                "class": name,
                **body,
            },
        )

    def undo(self, request=None):
        return self.post("/api/undo", {"request": request or self.request()})
