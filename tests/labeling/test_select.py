"""The command, from flags to the list and the page."""

import csv
import re
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from simmatch_tf import select
from simmatch_tf.data import answers, picking
from simmatch_tf.flags.errors import InputError
from simmatch_tf.labeling import features

COLORS = ((200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path):
    """48 images of four kinds, a copy of each twelfth, and a broken file."""
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(48):
        noise = random.normal(size=[6, 6, 3]) * 40
        coarse = np.clip(COLORS[index % 4] + noise, 0, 255).astype(np.uint8)
        picture = PIL.Image.fromarray(coarse).resize((48, 40))
        picture.save(folder / f"{index:02}.jpg", quality=95)
        if index % 12 == 0:
            picture.save(folder / f"{index:02}-again.jpg", quality=60)
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def run(photos, **values):
    output = photos.parent / "selected.csv"
    flags = select.SelectConfig(
        **{"images": str(photos), "output": str(output), "count": 8, **values}
    )
    assert select.main(flags) == 0
    with open(output, newline="") as file:
        return list(csv.DictReader(file))


def kinds(rows):
    return [int(row["file"][:2]) % 4 for row in rows]


def test_writes_the_list_and_the_next_command(photos, capsys):
    rows = run(photos)
    assert [row["rank"] for row in rows] == [str(i) for i in range(1, 9)]
    assert sorted(kinds(rows[:4])) == [0, 1, 2, 3]
    assert len({row["file"][:2] for row in rows}) == 8  # no copy
    assert all(float(row["typicality"]) > 0 for row in rows)
    sizes = {row["cluster"]: int(row["cluster_size"]) for row in rows}
    assert len(sizes) >= 6 and 40 <= sum(sizes.values()) <= 48
    output = capsys.readouterr()
    assert "by pixels alone" in output.out
    assert "4 near-duplicates" in output.out
    assert "1 of 53 images cannot be read" in output.err
    assert output.out.rstrip().endswith(
        f"python -m simmatch_tf.label --images={photos} "
        f"--list={photos.parent / 'selected.csv'}"
    )


def test_a_second_call_reads_no_image_and_gives_the_same(photos, monkeypatch):
    rows = run(photos)
    read = []
    picture = features.viewing.picture
    monkeypatch.setattr(
        features.viewing,
        "picture",
        lambda path, side: read.append(path) or picture(path, side),
    )
    assert run(photos) == rows
    assert [path.rpartition("/")[2] for path in read] == ["broken.jpg"]
    (photos / "00.jpg").write_bytes((photos / "01.jpg").read_bytes())
    run(photos)
    assert len(read) == 1 + 53  # a file has changed


def test_the_page_shows_clusters_copies_and_unreadable_files(photos):
    page = photos.parent / "selected.html"
    rows = run(photos, html=str(page), count=48)
    text = page.read_text()
    assert re.search(r"near-duplicates: \d\d(-again)?\.jpg", text)
    assert "no JPEG, PNG, GIF, BMP or WebP image" in text
    assert "by pixels alone" in text and "<script" not in text
    for row in rows:
        assert row["file"] in text
    assert text.count("data:image/jpeg") == 48


def test_labels_are_taken_into_account(photos, capsys):
    log = photos.parent / "labels.jsonl"
    with answers.Writer(log, images=photos, classes=["red", "green"]) as writer:
        for name in ("00.jpg", "04.jpg"):
            writer.append({"file": name, "answer": "class", "class": "red"})
        writer.append({"file": "01.jpg", "answer": "class", "class": "green"})
        writer.append({"file": "02.jpg", "answer": "none"})
    rows = run(photos, labels_from=str(log), count=2)
    assert sorted(kinds(rows)) == [2, 3]
    assert capsys.readouterr().out.rstrip().endswith(f" --labels={log}")
    names = {row["file"] for row in run(photos, labels_from=str(log), count=44)}
    # Neither labeled images nor a copy of one, nor what is no class's.
    assert not {"00.jpg", "04.jpg", "01.jpg", "00-again.jpg", "02.jpg"} & names


def test_another_page_is_kept(photos):
    page = photos.parent / "own.html"
    page.write_text("hello")
    with pytest.raises(InputError, match="own.html: exists, and is no page of"):
        run(photos, html=str(page))
    assert page.read_text() == "hello"
    run(photos, html=str(photos.parent / "new.html"), count=1)
    run(photos, html=str(photos.parent / "new.html"), count=1)  # replaced


def test_stratified_reads_true_classes(photos):
    (photos / "broken.jpg").unlink()
    table = photos.parent / "true.csv"
    lines = [f"{p.name},{int(p.name[:2]) % 4}" for p in photos.iterdir()]
    table.write_text("\n".join(["file,class", *lines]))
    rows = run(photos, method="stratified", classes_from=str(table))
    assert sorted(kinds(rows)) == [0, 0, 1, 1, 2, 2, 3, 3]
    table.write_text("\n".join(["file,class", *lines[1:]]))
    with pytest.raises(InputError, match="names no class of 1 of 52 images"):
        run(photos, method="stratified", classes_from=str(table))


@pytest.mark.slow
def test_a_run_chooses_by_its_features_and_later_by_its_uncertainty(
    photos, finished_run, monkeypatch, capsys
):
    model = str(finished_run[0])
    rows = run(photos, model=model, count=4)
    assert len(rows) == 4
    output = capsys.readouterr()
    assert f"features of {model}" in output.out
    assert "1 of 53 images cannot be read" in output.err
    log = photos.parent / "labels.jsonl"
    given = []
    pick = picking.pick
    monkeypatch.setattr(
        picking,
        "pick",
        lambda *args, **more: given.append(more) or pick(*args, **more),
    )
    with answers.Writer(log, images=photos, classes=["red", "green"]) as writer:
        for index in range(4):
            for kind, name in enumerate(("red", "green")):
                file = f"{4 * index + kind:02}.jpg"
                writer.append({"file": file, "answer": "class", "class": name})
            if index == 2:
                run(photos, model=model, labels_from=str(log))
    run(photos, model=model, labels_from=str(log))
    assert given[0]["uncertainty"] is None  # three of each
    uncertainty = given[1]["uncertainty"]
    assert uncertainty.shape == (52,)
    assert 0 <= uncertainty.min() < uncertainty.max() <= 1
    assert "the model is uncertain of" in capsys.readouterr().out


def test_another_file_is_not_replaced(photos):
    other = photos.parent / "mine.csv"
    other.write_text("file,class\n00.jpg,cat\n")
    with pytest.raises(InputError, match="is no table of this command"):
        run(photos, output=str(other))
    assert other.read_text().endswith("cat\n")


def test_a_folder_without_a_readable_image_is_refused(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="none of 1 images can be read"):
        run(tmp_path, count=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"output": "list.txt"}, "--output=list.txt: must end in .csv"),
        ({"html": "page.txt"}, "--html=page.txt: must end in .html or .htm"),
        ({"method": "stratified"}, "needs the true classes"),
        ({"classes_from": "a.csv"}, "no other method reads them"),
        ({"image_size": 32}, "--image_size=32: needs --model"),
        ({"model": "no/such/run"}, "--model=no/such/run"),
        ({"model": "keras_applications:ResNet5"}, "ResNet50"),
        ({"weights": "a.h5"}, "--weights=a.h5: is for --model=LIBRARY:NAME"),
        (
            {"model": "keras_applications:MobileNet", "weights": "no.h5"},
            "--weights=no.h5: no such file",
        ),
        ({"count": 0}, "--count=0"),
    ],
)
def test_wrong_flags_are_refused(tmp_path, values, message):
    with pytest.raises(InputError, match=re.escape(message)):
        select.SelectConfig(**{"images": str(tmp_path), **values})


def test_choosing_by_pixels_needs_no_tensorflow(photos):
    code = (
        "import sys\n"
        "from simmatch_tf import select\n"
        f"select.main(select.SelectConfig(images={str(photos)!r}, count=4, "
        f"output={str(photos.parent / 'out.csv')!r}))\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_weights_of_a_library_s_network_come_from_a_file(tmp_path, photos):
    """Another file gives other features."""
    import keras

    chosen = []
    for number in range(2):
        keras.utils.set_random_seed(number)
        network = keras.applications.MobileNet(weights=None, include_top=False)
        path = tmp_path / f"{number}.weights.h5"
        network.save_weights(path)
        indices, values, _ = features.of_network(
            "keras_applications:MobileNet",
            "keras_applications",
            str(photos),
            sorted(str(file) for file in photos.glob("[0-9]*.jpg"))[:4],
            weights=str(path),
            image_size=32,
            batch_size=4,
        )
        assert len(indices) == 4
        chosen.append(values)
    gap = np.abs(chosen[0] - chosen[1]).max()
    assert gap > 0.1 * np.abs(chosen[0]).max() > 0
