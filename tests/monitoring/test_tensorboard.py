"""TensorBoard itself, started on a run, shows what the README says."""

import io
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import PIL.Image
import pytest

from tests import runs

pytestmark = pytest.mark.slow

SCALARS = {
    "loss/total", "loss/s", "loss/u", "loss/in", "loss/weighted_u",
    "loss/weighted_in", "learning_rate", "pseudo_label/mask_rate",
    "pseudo_label/accuracy_all", "pseudo_label/confidence",
    "pseudo_label/sure", "sharpness/p_w", "sharpness/p_hat", "sharpness/q_w",
    "sharpness/q_hat", "matching/agreement", "alignment/divergence",
    "memory/filled", "memory/age", "memory/norm", "memory/similarity_within",
    "memory/similarity_between", "speed/images_per_second",
    "speed/input_wait", "test/student_top1", "test/ema_top1",
}  # fmt: skip


class Server:
    """TensorBoard on a folder, at a free port of this machine."""

    def __init__(self, folder, log):
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tensorboard.main", "--port=0",
                 f"--logdir={folder}", "--load_fast=false"],
                stderr=file,
            )  # fmt: skip
        for _ in range(600):
            said = log.read_text()
            if match := re.search(r"http://localhost:(\d+)/", said):
                break
            assert self.process.poll() is None, said
            time.sleep(0.1)
        self.address = f"http://localhost:{match[1]}/data/plugin/"

    def get(self, path, **query):
        url = self.address + path
        if query:
            url += "?" + urllib.parse.urlencode(query)
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.read()

    def json(self, path, **query):
        return json.loads(self.get(path, **query))

    def wait_for(self, path, key):
        """The files are read in the background."""
        for _ in range(120):
            try:
                answer = self.json(path)
            except urllib.error.HTTPError:
                answer = {}
            if answer.get(key):
                return answer[key]
            time.sleep(0.5)
        raise TimeoutError(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 30 steps, with enough pseudo-labels to tell their balance."""
    folder = tmp_path_factory.mktemp("board") / "run"
    runs.fit(
        folder, steps=30, threshold=0.1, picture_every=20, eval_every=15,
        checkpoint_every=30,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def server(run):
    board = Server(run.parent, run / "board.log")
    yield board
    board.process.terminate()
    board.process.wait(timeout=30)


RUN = "run/tensorboard"


def test_scalars(server):
    tags = server.wait_for("scalars/tags", RUN)
    assert SCALARS | {"pseudo_label/balance"} <= set(tags)
    points = server.json(
        "scalars/scalars", run=RUN, tag="pseudo_label/accuracy_all"
    )
    steps, values = [p[1] for p in points], [p[2] for p in points]
    assert steps == list(range(2, 31, 2))
    assert all(0 <= value <= 1 for value in values)
    points = server.json("scalars/scalars", run=RUN, tag="test/ema_top1")
    assert [p[1] for p in points] == [15, 30]


def test_pictures(server):
    tags = server.wait_for("images/tags", RUN)
    assert set(tags) == {
        "pictures/views", "pictures/neighbors", "pictures/confusion",
    }  # fmt: skip
    for tag, steps in (("views", [20, 30]), ("confusion", [15, 30])):
        tag = f"pictures/{tag}"
        shown = server.json("images/images", run=RUN, tag=tag, sample=0)
        assert [each["step"] for each in shown] == steps
        query = dict(urllib.parse.parse_qsl(shown[-1]["query"]))
        data = server.get("images/individualImage", **query)
        picture = PIL.Image.open(io.BytesIO(data))
        assert picture.width > 300 and picture.height > 300
        # There is something on it.
        assert len(np.unique(np.asarray(picture))) > 20


def test_histograms(server):
    tags = server.wait_for("histograms/tags", RUN)
    assert set(tags) == {
        "pseudo_label/confidences", "pseudo_label/class_counts",
        "alignment/mean",
    }  # fmt: skip
    points = server.json(
        "histograms/histograms", run=RUN, tag="pseudo_label/class_counts"
    )
    buckets = np.array(points[-1][2])  # [classes, (left, right, count)]
    np.testing.assert_allclose(buckets[:, 0], np.arange(10), atol=1e-6)
    np.testing.assert_allclose(buckets[:, 2].sum(), 16, atol=1e-4)


def test_text_and_hparams(server):
    text_tags = server.wait_for("text/tags", RUN)
    tags = {"run/flags", "run/data", "run/split", "run/versions"}
    assert tags <= set(text_tags)
    text = server.json("text/text", run=RUN, tag="run/flags")[0]["text"]
    assert "--batch_size=8" in text
    text = server.json("text/text", run=RUN, tag="run/versions")[0]["text"]
    assert "tensorflow" in text and "simmatch_tf" in text
    body = json.dumps(
        {"experimentName": "", "allowedStatuses": ["STATUS_UNKNOWN",
         "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
         "colParams": [], "startIndex": 0, "sliceSize": 10}
    ).encode()  # fmt: skip
    request = urllib.request.Request(
        server.address + "hparams/session_groups", body,
        {"Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=30) as answer:
        groups = json.load(answer)["sessionGroups"]
    assert groups[0]["hparams"]["batch_size"] == 8
    assert groups[0]["hparams"]["algorithm"] == "simmatch"


def test_projector(server, run):
    names = []
    for _ in range(60):
        names = server.json("projector/runs")
        if names:
            break
        time.sleep(0.5)
    assert names == [RUN]
    points = server.json("projector/info", run=RUN)["embeddings"][0]
    assert points["tensorShape"] == [20, 16]
    name = points["tensorName"]
    data = server.get("projector/tensor", run=RUN, name=name)
    rows = np.frombuffer(data, np.float32).reshape(20, 16)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    table = server.get("projector/metadata", run=RUN, name=name).decode()
    lines = table.splitlines()
    assert lines[0] == "class\timage" and len(lines) == 21
    split = json.loads((run / "split.json").read_text())
    classes = [line.split("\t")[0] for line in lines[1:]]
    assert classes == [str(label) for label in split["labels"]]
    data = server.get("projector/sprite_image", run=RUN, name=name)
    assert PIL.Image.open(io.BytesIO(data)).size == (5 * 32, 5 * 32)
