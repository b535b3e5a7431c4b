"""Thumbnails show the labeled images that the run was trained on."""

import io

import numpy as np
import PIL.Image
import pytest

from simmatch_tf.data import splits
from simmatch_tf.data.sources import digits, folder
from simmatch_tf.serving import preprocessing, thumbnails

# Slot → its image and colour, as the run began.
LABELED = {
    0: ("labeled/blue/1.png", (0, 0, 120)),
    1: ("labeled/blue/2.png", (0, 0, 240)),
    2: ("labeled/red/1.png", (120, 0, 0)),
    3: ("labeled/red/2.png", (240, 0, 0)),
}


def save(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (9, 8), colour).save(path)


def of_source(source, data):
    """What thumbnails need of a run that begins with these images."""
    labeled = np.arange(4)
    unlabeled = np.arange(len(source.train))
    split = splits.Split(labeled, np.zeros([0], np.int64), unlabeled)
    source.origin().write(data)
    preprocess = preprocessing.Preprocessing(source.image_shape, None)
    return {
        "content": splits.describe(split, source),
        "data": data,
        "preprocess": preprocess,
    }


@pytest.fixture
def root(tmp_path):
    for name, colour in LABELED.values():
        save(tmp_path / "photos" / name, colour)
    for number in range(3):
        save(tmp_path / "photos" / "unlabeled" / f"{number}.png", (9, 9, 9))
    return tmp_path / "photos"


def load(root):
    return folder.load(str(root), on_bad_image="error", image_size=8)


def colours(pictures):
    return {
        slot: np.asarray(PIL.Image.open(io.BytesIO(picture))).mean((0, 1))
        for slot, picture in pictures.items()
    }


def check(pictures, slots):
    seen = colours(pictures)
    assert sorted(seen) == slots
    for slot in slots:
        np.testing.assert_allclose(seen[slot], LABELED[slot][1], atol=4)


def test_labeled_images_are_matched_by_name(root, tmp_path, capsys):
    run = of_source(load(root), tmp_path / "data.json")
    check(thumbnails.of_slots(load(root), range(4), **run), [0, 1, 2, 3])
    assert "Warning" not in capsys.readouterr().err
    # One more label in front, one less.
    save(root / "labeled/blue/0.png", (0, 255, 0))
    (root / LABELED[2][0]).unlink()
    check(thumbnails.of_slots(load(root), range(4), **run), [0, 1, 3])
    name = run["content"]["names"][2]
    assert (
        "Warning: 1 of 4 labeled images are not shown: they are no longer in "
        f"the dataset as the run began with them (such as {name})\n"
    ) in capsys.readouterr().err


def test_changed_images_are_left_out(root, tmp_path, capsys):
    run = of_source(load(root), tmp_path / "data.json")
    save(root / LABELED[1][0], (0, 255, 0))
    save(root / "unlabeled/0.png", (0, 255, 0))
    check(thumbnails.of_slots(load(root), [0, 1, 3], **run), [0, 3])
    assert "1 of 3 labeled images are not " in capsys.readouterr().err
    # Without a record of the original files, names decide.
    (tmp_path / "data.json").unlink()
    assert sorted(thumbnails.of_slots(load(root), [0, 1], **run)) == [0, 1]


def test_labeled_images_without_names(tmp_path, capsys):
    source = digits.load(8)
    run = of_source(source, tmp_path / "data.json")
    assert len(thumbnails.of_slots(source, range(4), **run)) == 4
    run["content"]["train_sha256"] = "other"
    assert thumbnails.of_slots(source, range(4), **run) == {}
    run["content"]["train_sha256"] = None  # an older file: by their number
    assert len(thumbnails.of_slots(source, range(4), **run)) == 4
    run["content"]["train_images"] += 1
    assert thumbnails.of_slots(source, range(4), **run) == {}
    run["content"]["train_images"] -= 1
    # The file that holds them all has changed.
    text = run["data"].read_text().replace('": [', '": [1')
    run["data"].write_text(text)
    assert thumbnails.of_slots(source, range(4), **run) == {}


def test_thumbnails_of_files_show_what_the_network_sees(tmp_path):
    grey = np.linspace(0, 60000, 72).reshape(8, 9).astype(np.uint16)
    PIL.Image.fromarray(grey).save(tmp_path / "grey.png")
    preprocess = preprocessing.Preprocessing((8, 9, 3), None)
    data = (tmp_path / "grey.png").read_bytes()
    seen = preprocess.decode(data).numpy().mean()
    (picture,) = thumbnails.of_files({0: str(tmp_path / "grey.png")}).values()
    shown = np.asarray(PIL.Image.open(io.BytesIO(picture))).mean()
    assert shown == pytest.approx(seen, abs=4)
