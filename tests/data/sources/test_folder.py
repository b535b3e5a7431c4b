import json
import os
import shutil

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from simmatch_tf import terminal
from simmatch_tf.data import files, splits
from simmatch_tf.data.sources import folder
from simmatch_tf.flags.errors import InputError

GOOD = (
    "labeled/cat/b.jpg",
    "labeled/cat/a.png",
    "labeled/dog/c.gif",
    "unlabeled/z.bmp",
    "unlabeled/more/y.JPG",
    "test/cat/1.jpg",
    "test/dog/2.JPEG",
    "test/dog/10.jpg",
)

COPIES = ("in two classes", "labeled ones, too", "twice")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    path = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path / "simmatch_tf"


@pytest.fixture
def logged(monkeypatch):
    """Warnings, as they are read; most images here are of one colour."""
    lines = []

    def note(line):
        if not any(word in line for word in COPIES):
            lines.append(line)

    monkeypatch.setattr(terminal, "warn", note)
    return lines


def save(path, colour=(255, 0, 0), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (9, 6), colour).save(path, **options)


def make(root, names=GOOD, without=()):
    for name in names:
        if not name.startswith(tuple(without)):
            save(root / name)
    return root


def read(root, on_bad_image="error"):
    return folder.load(str(root), on_bad_image=on_bad_image)


def test_order_labels_and_names(tmp_path):
    source = read(make(tmp_path / "data"))
    assert source.class_names == ["cat", "dog"]
    assert source.train.names == [
        "labeled/cat/a.png",
        "labeled/cat/b.jpg",
        "labeled/dog/c.gif",
        "unlabeled/more/y.JPG",
        "unlabeled/z.bmp",
    ]
    np.testing.assert_array_equal(source.train.labels, [0, 0, 1, -1, -1])
    assert source.test.names == [
        "test/cat/1.jpg",
        "test/dog/10.jpg",
        "test/dog/2.JPEG",
    ]
    np.testing.assert_array_equal(source.test.labels, [0, 1, 1])
    for images in (source.train, source.test):
        assert list(images.paths) == [
            str(tmp_path / "data" / name) for name in images.names
        ]


def test_the_order_is_not_that_of_the_file_system(tmp_path, monkeypatch):
    make(tmp_path / "data")
    make(tmp_path / "data", [f"unlabeled/{i}/{i}.png" for i in range(20)])
    # Which of two links to one folder gives the names is decided, too.
    make(tmp_path / "away", ["a.png"])
    for name in ("link_2", "link_1", "link_3"):
        os.symlink(tmp_path / "away", tmp_path / "data/unlabeled" / name)
    expected = read(tmp_path / "data")
    assert "unlabeled/link_1/a.png" in expected.train.names
    assert len(expected.train) == 26
    scandir = os.scandir

    class Reversed:
        def __init__(self, path):
            self.entries = sorted(scandir(path), key=lambda e: e.name)[::-1]

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *args):
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    source = read(tmp_path / "data")
    assert source.train.names == expected.train.names
    assert source.test.names == expected.test.names


def test_classes_by_code_point(tmp_path):
    names = ["b", "Z", "a", "é", "10", "9"]
    parts = [f"labeled/{name}/x.png" for name in names]
    source = read(make(tmp_path / "data", [*parts, "unlabeled/x.png"]))
    assert source.class_names == ["10", "9", "Z", "a", "b", "é"]
    assert source.test is None


def test_source(tmp_path):
    make(tmp_path / "data", without=["unlabeled", "test"])
    save(tmp_path / "data/unlabeled/a.png", (0, 255, 0))
    source = folder.load(str(tmp_path / "data"), on_bad_image="error")
    assert source.name == "folder" and source.flip and source.test is None
    assert source.image_shape == (224, 224, 3)
    mean, std = source.statistics()
    # One of four is green, the others red, two of them as JPEG or GIF.
    np.testing.assert_allclose(mean, [0.75, 0.25, 0], atol=0.01)
    np.testing.assert_allclose(std[:2], [0.433, 0.433], atol=0.01)
    assert std[2] >= 1e-3
    make(tmp_path / "data", ["test/cat/a.png", "test/dog/a.png"])
    source = folder.load(
        str(tmp_path / "data"), on_bad_image="error", image_size=64
    )
    assert source.image_shape == (64, 64, 3)
    np.testing.assert_array_equal(source.test.labels, [0, 1])


@pytest.mark.parametrize(
    ("most", "given", "side"),
    # Half of the five training images have at least 9·6 pixels: √54 ≈ 7.
    [(64, None, 7), (5, None, 5), (64, 20, 20), (None, None, 224)],
)
def test_image_size(tmp_path, most, given, side):
    root = make(tmp_path / "data")
    for name in ("labeled/cat/a.png", "unlabeled/z.bmp"):
        PIL.Image.new("RGB", (100, 200)).save(root / name)
    for name in ("test/cat/1.jpg", "test/dog/2.JPEG", "test/dog/10.jpg"):
        PIL.Image.new("RGB", (300, 300)).save(root / name)  # do not count
    source = folder.load(
        str(root), on_bad_image="error", image_size=given, usual_side=most
    )
    assert source.image_shape == (side, side, 3)


def test_statistics_are_those_of_the_training_images(tmp_path):
    make(tmp_path / "data", without=["test"])
    before = read(tmp_path / "data").statistics()
    for name in ("cat", "dog"):
        save(tmp_path / f"data/test/{name}/a.png", (0, 0, 255))
    assert read(tmp_path / "data").statistics() == before


def test_orientations_are_kept_with_their_images(tmp_path):
    root = make(tmp_path / "data")
    for name, value in (("labeled/cat/b.jpg", 6), ("test/dog/10.jpg", 3)):
        exif = PIL.Image.Exif()
        exif[0x0112] = value
        save(root / name, exif=exif)
    source = read(root)
    np.testing.assert_array_equal(source.train.orientations, [1, 6, 1, 1, 1])
    np.testing.assert_array_equal(source.test.orientations, [1, 3, 1])
    encoded, orientation = source.train.read(tf.constant(1, tf.int64))
    assert encoded.numpy() == (root / "labeled/cat/b.jpg").read_bytes()
    assert orientation.numpy() == 6


def test_inspected_once(tmp_path, cache, monkeypatch):
    root = make(tmp_path / "data")
    first = read(root)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(files, "examine", lambda path: pytest.fail(path))
    again = read(root)
    assert again.train.names == first.train.names
    assert again.statistics() == first.statistics()


def test_hidden_and_other_files(tmp_path, logged):
    root = make(tmp_path / "data")
    make(root, [".hidden/a.png", "labeled/.hidden/a.png"])
    make(root, ["unlabeled/.a.png", "unlabeled/.b/a.png", "test/dog/.a.png"])
    for name in (
        "labeled/notes.txt",
        "labeled/dog/Thumbs.db",
        "unlabeled/a.webp",
        "unlabeled/more/png",
        "test/cat/a.tif",
    ):
        (root / name).write_bytes(b"?")
    source = read(root)
    assert len(source.train) == 5 and len(source.test) == 3
    assert source.class_names == ["cat", "dog"]
    assert logged == [
        f"{root}: 5 files are left out, as their names do not end in .jpg "
        ".jpeg .png .bmp .gif: labeled 1 .txt; labeled/dog 1 .db; test/cat 1 "
        ".tif; unlabeled 1 .webp, 1 without ending"
    ]
    logged.clear()
    read(make(tmp_path / "clean"))
    assert not logged


def test_sub_folders_of_a_class(tmp_path):
    root = make(tmp_path / "data")
    make(root, ["labeled/cat/old/deep/a.png", "labeled/cat-like/x.png"])
    make(root, ["test/cat-like/x.png"])
    source = read(root)
    assert source.class_names == ["cat", "cat-like", "dog"]
    np.testing.assert_array_equal(source.train.labels[:5], [0, 0, 0, 1, 2])
    assert "labeled/cat/old/deep/a.png" in source.train.names


def test_links_are_followed_each_folder_once(tmp_path):
    root = make(tmp_path / "data")
    make(tmp_path / "away", ["x/1.png", "x/in/2.png", "3.png"])
    os.symlink(tmp_path / "away" / "x", root / "unlabeled/link")
    os.symlink(tmp_path / "away" / "3.png", root / "unlabeled/file.png")
    # A loop, upwards and through a folder outside; and a second way.
    os.symlink("..", root / "unlabeled/more/up")
    os.symlink(root / "unlabeled", tmp_path / "away/x/back")
    os.symlink("more", root / "unlabeled/a_second_way")
    os.symlink(root / "labeled/cat", root / "labeled/dog/loop")
    os.symlink(root / "labeled/dog", root / "labeled/cat/loop")
    source = read(root)
    assert source.train.names == [
        "labeled/cat/a.png",
        "labeled/cat/b.jpg",
        "labeled/cat/loop/c.gif",
        "labeled/dog/c.gif",
        "labeled/dog/loop/a.png",
        "labeled/dog/loop/b.jpg",
        "unlabeled/file.png",
        "unlabeled/link/1.png",
        "unlabeled/link/in/2.png",
        "unlabeled/more/y.JPG",
        "unlabeled/z.bmp",
    ]


def test_whole_parts_and_classes_may_be_links(tmp_path):
    make(tmp_path / "one", ["cat/a.png"])
    make(tmp_path / "two", ["a.png"])
    root = make(tmp_path / "data", ["labeled/dog/a.png"])
    os.symlink(tmp_path / "one" / "cat", root / "labeled/cat")
    os.symlink(tmp_path / "two", root / "unlabeled")
    os.symlink("labeled", root / "test")
    os.symlink(root, tmp_path / "link")
    source = read(tmp_path / "link")
    assert source.train.names == [
        "labeled/cat/a.png",
        "labeled/dog/a.png",
        "unlabeled/a.png",
    ]
    assert source.test.names == ["test/cat/a.png", "test/dog/a.png"]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("gone.png", "a symbolic link to a file that is not there"),
        ("loop.png", "Too many levels of symbolic links"),
    ],
)
def test_broken_links_are_bad_images(tmp_path, target, reason):
    root = make(tmp_path / "data")
    os.symlink(target, root / "unlabeled/loop.png")
    with pytest.raises(InputError, match=f"unlabeled/loop.png: {reason}"):
        read(root)


@pytest.mark.parametrize("part", ["labeled/cat", "unlabeled", "test/dog"])
def test_bad_images(tmp_path, part, logged):
    root = make(tmp_path / "data")
    (root / part / "bad.jpg").write_bytes(b"")
    with pytest.raises(InputError) as error:
        read(root)
    assert str(error.value).startswith(
        f"{root}/{part}/bad.jpg: the file is empty. In all, 1 of 9 images"
    )
    with pytest.raises(InputError, match="more than the 1%"):
        read(root, "skip")
    for i in range(91):
        (root / f"unlabeled/{i}.bmp").write_bytes(
            (root / "unlabeled/z.bmp").read_bytes()
        )
    with pytest.raises(InputError, match="it, or .* --on_bad_image=skip$"):
        read(root)
    source = read(root, "skip")
    assert len(source.train) == 96 and len(source.test) == 3
    names = [*source.train.names, *source.test.names]
    assert len(set(names)) == 99 and f"{part}/bad.jpg" not in names
    assert logged == [
        f"{root}/{part}/bad.jpg: the file is empty",
        "1 of 100 images cannot be used, and are left out "
        "(--on_bad_image=skip)",
    ]


def test_leaving_out_bad_images_may_empty_a_class(tmp_path):
    root = make(tmp_path / "data")
    make(root, [f"unlabeled/{i}.png" for i in range(99)])
    (root / "labeled/dog/c.gif").write_bytes(b"")
    with pytest.raises(
        InputError, match="no images that can be used in labeled/dog"
    ):
        read(root, "skip")


def test_names_that_are_no_utf_8(tmp_path):
    root = make(tmp_path / "data")
    name = os.fsencode(root) + b"/unlabeled/\xe9t\xe9.png"
    with open(name, "wb") as file:
        file.write((root / "labeled/cat/a.png").read_bytes())
    os.rename(root / "labeled/dog", os.fsencode(root) + b"/labeled/d\xf6g")
    os.rename(root / "test/dog", os.fsencode(root) + b"/test/d\xf6g")
    make(root, ["unlabeled/猫 é.png"])
    source = read(root)
    assert source.class_names == ["cat", r"d\xf6g"]
    names = [*source.train.names, *source.class_names]
    assert json.loads(json.dumps(names, ensure_ascii=False).encode()) == names
    assert r"labeled/d\xf6g/c.gif" in names and "unlabeled/猫 é.png" in names
    index = names.index(r"unlabeled/\xe9t\xe9.png")
    encoded, _ = source.train.read(tf.constant(index, tf.int64))
    assert encoded.numpy() == (root / "labeled/cat/a.png").read_bytes()
    # Messages can be printed, too.
    with open(name, "wb"):
        pass
    with pytest.raises(InputError, match=r"\\xe9t\\xe9.png: the fi") as error:
        read(root)
    str(error.value).encode()


def test_home_and_relative_paths(tmp_path, monkeypatch):
    make(tmp_path / "data")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path in ("~/data", "data", "data/", "./data/../data"):
        source = read(path)
        assert source.train.paths[0] == f"{tmp_path}/data/labeled/cat/a.png"
        assert source.train.names[0] == "labeled/cat/a.png"


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match="needs --data_dir=DIR.*labeled/CLA"):
        folder.load(None, on_bad_image="error")
    with pytest.raises(InputError, match="/gone: there is no such folder"):
        read(tmp_path / "gone")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="/file: is a file, not a folder"):
        read(tmp_path / "file")


@pytest.mark.parametrize(
    ("without", "more", "message"),
    [
        (
            ["labeled"],
            [],
            "there is no folder labeled/ or train/ in it; expected are labele",
        ),
        (
            [],
            ["labeled/b.png", "labeled/a.jpg"],
            r"labeled/a.jpg: lies directly in labeled/, one of 2 images .* "
            "move it to labeled/CLASS/",
        ),
        ([], ["test/a.jpg"], "test/a.jpg: lies directly in test/, one of 1"),
        (
            ["labeled/dog"],
            [],
            r"labeled/ has 1 class folders \(cat\), but at least 2",
        ),
        (["labeled/dog"], ["labeled/dog/"], "are no images in labeled/dog"),
        (["test/dog"], [], "no images in test/dog; every class of labeled/"),
        (["test/dog"], ["test/dog/in/"], "no images in test/dog"),
        (["test/"], ["test/"], "no images in test/cat"),
        (
            [],
            ["test/cow/a.png"],
            "test/cow is a class that labeled/ does not have; the classes are "
            "cat, dog",
        ),
        (["unlabeled"], [], "are no images in unlabeled/; add some"),
        (["unlabeled"], ["unlabeled/in/"], "are no images in unlabeled/; add"),
    ],
)
def test_wrong_layouts(tmp_path, without, more, message):
    root = make(tmp_path / "data", without=without)
    for name in more:
        if name.endswith("/"):
            (root / name).mkdir(parents=True)
        else:
            save(root / name)
    with pytest.raises(InputError, match=message) as error:
        read(root)
    assert str(root) in str(error.value)


def test_empty_labeled(tmp_path):
    (tmp_path / "labeled").mkdir()
    with pytest.raises(InputError, match=r"has 0 class folders \(none\)"):
        read(tmp_path)


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    root = make(tmp_path / "data")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(
        InputError, match=r"/unlabeled/more: cannot be read \(Permission den"
    ):
        read(root)
    monkeypatch.setattr(os, "scandir", scandir)
    os.rename(root / "unlabeled", root / "elsewhere")
    (root / "unlabeled").write_text("")
    with pytest.raises(
        InputError, match=r"/unlabeled: cannot be read \(Not a directory"
    ):
        read(root)


@pytest.fixture
def warned(monkeypatch):
    """All warnings, as they are read."""
    lines = []
    monkeypatch.setattr(terminal, "warn", lines.append)
    return lines


def distinct(root):
    """A folder whose images are all of different colours."""
    for number, name in enumerate(GOOD):
        save(root / name, (20 * number, 0, 0))
    return root


def copy(root, one, other):
    (root / other).write_bytes((root / one).read_bytes())


def test_no_image_exists_twice(tmp_path, warned):
    read(distinct(tmp_path / "data"))
    assert warned == []


def test_test_images_that_are_trained_on(tmp_path, warned):
    """As links."""
    root = distinct(tmp_path / "data")
    shutil.rmtree(root / "test")
    (root / "unlabeled" / "all").symlink_to("../labeled")
    (root / "test").symlink_to("labeled")
    read(root)
    leak, overlap = warned
    assert leak.startswith("test images that are labeled ones, too, and ")
    assert "class: 3 (test/cat/a.png is labeled/cat/a.png, " in leak
    assert overlap.startswith("test images that are unlabeled ones, too, and")


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (
            "labeled/cat/a.png",
            "test/cat/copy.png",
            "test images that are labeled ones, too, and trained on with "
            "their class: 1 (test/cat/copy.png is labeled/cat/a.png): the "
            "result will be too good; remove them from one of the two",
        ),
        (
            "unlabeled/z.bmp",
            "test/cat/copy.bmp",
            "test images that are unlabeled ones, too, and trained on without "
            "their class: 1 (test/cat/copy.bmp is unlabeled/z.bmp): the "
            "result may be better than on new images",
        ),
        (
            "labeled/cat/a.png",
            "labeled/dog/copy.png",
            "images in two classes: 1 (labeled/dog/copy.png is "
            "labeled/cat/a.png): one of the two is wrong",
        ),
        (
            "labeled/cat/a.png",
            "test/dog/copy.png",
            "images in two classes: 1 (test/dog/copy.png is "
            "labeled/cat/a.png): one of the two is wrong",
        ),
        (
            "labeled/cat/a.png",
            "labeled/cat/copy.png",
            "labeled images that exist twice: 1 (labeled/cat/copy.png is "
            "labeled/cat/a.png): of one that --validation_fraction sets "
            "aside, the other may be trained on",
        ),
        (
            "test/cat/1.jpg",
            "test/cat/copy.jpg",
            "test images that exist, and count, twice: 1 "
            "(test/cat/copy.jpg is test/cat/1.jpg)",
        ),
        # As many people do it: it is what --unlabeled_includes_labeled does.
        ("labeled/cat/a.png", "unlabeled/copy.png", None),
        ("unlabeled/z.bmp", "unlabeled/copy.bmp", None),
    ],
)
def test_copies(tmp_path, warned, one, other, message):
    root = distinct(tmp_path / "data")
    copy(root, one, other)
    for _ in range(2):  # the second time from the cache
        read(root)
        assert warned == [message] * bool(message)
        warned.clear()


def test_what_is_not_used_is_named(tmp_path, warned):
    root = distinct(tmp_path / "data")
    make(root, ["val/cat/a.png", "Unlabelled/b.png", "stray.png"])
    (root / "notes.txt").write_text("x")
    read(root)
    assert warned == [
        f"{root}: not used, as they are none of labeled/, unlabeled/ and "
        "test/: Unlabelled/; notes.txt; stray.png; val/"
    ]
    assert read(root).overview.splitlines()[-3:] == [
        "not used: Unlabelled/       1",
        "not used: stray.png         1",
        "not used: val/              1",
    ]
    shutil.rmtree(root / "test")
    warned.clear()
    read(root)
    assert warned[0].endswith("val/ (to measure on val/, call it test/)")
    shutil.rmtree(root / "unlabeled")
    with pytest.raises(InputError, match="beside these it holds Unlabelled/; "):
        read(root)
    os.rename(root / "labeled", root / "photos")
    with pytest.raises(InputError, match="images lie directly .*stray.png: na"):
        read(root)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            "labeled/dog",
            r"no images in labeled/dog but files that are no \.jpg/\.jpeg/"
            r"\.png/\.bmp/\.gif: 2 \.tiff, 1 \.heic; every class",
        ),
        ("unlabeled", r"no images in unlabeled/ but files .*: 2 \.tiff, 1 \.h"),
        ("test/cat", r"no images in test/cat but files .*: 2 \.tiff, 1 \.heic"),
    ],
)
def test_a_class_of_other_formats(tmp_path, part, message):
    root = make(tmp_path / "data", without=[part])
    (root / part).mkdir(parents=True)
    for name in ("a.tiff", "b.TIFF", "c.heic"):
        (root / part / name).write_bytes(b"?")
    with pytest.raises(InputError, match=message):
        read(root)


def test_nothing_but_other_formats(tmp_path):
    for name in ("labeled/a/1.tif", "labeled/b/1.tif", "unlabeled/1.tif"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"?")
    with pytest.raises(InputError, match="no images in labeled/a but .*1 .tif"):
        read(tmp_path)


def test_no_unlabeled_images_are_needed(tmp_path):
    root = make(tmp_path / "data", without=["unlabeled"])
    with pytest.raises(InputError, match="--labels=N to label .*supervised"):
        read(root)
    source = folder.load(str(root), on_bad_image="error", need_unlabeled=False)
    assert len(source.train) == 3


NFC, NFD = "caf\u00e9", "cafe\u0301"


def test_one_class_in_two_forms_of_unicode(tmp_path):
    root = make(tmp_path / "data")
    make(root, [f"labeled/{NFC}/x.png", f"test/{NFD}/x.png"])
    make(root, [f"unlabeled/{NFD}.png", "unlabeled/caff.png"])
    source = read(root)
    assert source.class_names == [NFC, "cat", "dog"]
    assert f"test/{NFC}/x.png" in source.test.names
    assert source.train.names[-4:] == [
        "unlabeled/caff.png",
        f"unlabeled/{NFC}.png",
        "unlabeled/more/y.JPG",
        "unlabeled/z.bmp",
    ]
    # It is read all the same.
    encoded, _ = source.test.read(tf.constant(0, tf.int64))
    path = root / "test" / NFD / "x.png"
    assert encoded.numpy() == path.read_bytes()
    make(root, [f"labeled/{NFD}/y.png"])
    with pytest.raises(InputError, match="in another form of Unicode"):
        read(root)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("labeled/red", "/mnt/usb/red"),
        ("labeled/cat/more", "gone"),
        ("labeled", "/mnt/usb/labeled"),
        ("unlabeled", "/mnt/usb/unlabeled"),
        ("unlabeled/session 2", "session 2"),  # to itself
        ("test", "gone"),
        ("test/dog", "gone"),
    ],
)
@pytest.mark.parametrize("need_unlabeled", [True, False])
def test_a_link_to_a_folder_that_is_not_there(
    tmp_path, link, target, need_unlabeled
):
    """Such as one on a drive that is not mounted."""
    root = make(tmp_path / "data", without=[f"{link}/"])
    shutil.rmtree(root / link, ignore_errors=True)
    os.symlink(target, root / link)
    with pytest.raises(
        InputError, match=f"/{link}: is a link to {target}, which cannot be fo"
    ):
        folder.load(
            str(root), on_bad_image="error", need_unlabeled=need_unlabeled
        )


def test_a_data_dir_that_is_a_link_to_nothing(tmp_path):
    os.symlink("gone", tmp_path / "data")
    with pytest.raises(InputError, match="/data: is a link to gone, which can"):
        read(tmp_path / "data")


def test_an_empty_unlabeled_is_named(tmp_path, warned):
    """Such as a folder in which nothing is mounted."""
    root = distinct(tmp_path / "data")
    shutil.rmtree(root / "unlabeled")
    how = {"on_bad_image": "error", "need_unlabeled": False}
    folder.load(str(root), **how)
    assert warned == []
    (root / "unlabeled").mkdir()
    folder.load(str(root), **how)
    assert warned == [
        f"{root}: there is an unlabeled/, but there are no images in it"
    ]
    folder.load(str(root), **how, for_transfer=True)
    assert len(warned) == 1


def test_folders_of_the_system_are_left_out(tmp_path, warned):
    """Thumbnails of labeled images, and what was deleted."""
    root = distinct(tmp_path / "data")
    make(
        root,
        [
            "labeled/@eaDir/x.png",
            "labeled/cat/@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg",
            "labeled/dog/#recycle/wrong.png",
            "unlabeled/more/@eaDir/x.png",
        ],
    )
    source = read(root)
    assert source.class_names == ["cat", "dog"]
    assert len(source.train) == 5
    assert warned == [
        f"{root}: folders in which a system keeps thumbnails or deleted files "
        "are left out: 1 #recycle, 3 @eaDir"
    ]


def draw(root, **changes):
    how = {
        "labels": None,
        "label_fraction": None,
        "split_seed": 0,
        "validation_fraction": 0.5,
        "unlabeled_includes_labeled": True,
    }
    source = folder.load(str(root), on_bad_image="error")
    split = splits.draw(source, **{**how, **changes})
    return source, split, [source.train.names[i] for i in split.unlabeled]


def test_copies_of_images_set_aside_are_not_trained_on(tmp_path, warned):
    root = distinct(tmp_path / "data")
    save(root / "labeled/dog/d.png", (0, 9, 0))
    _, whole, unlabeled = draw(root)
    assert len(whole.validation) == 2 and not warned
    labeled = ["cat/a.png", "cat/b.jpg", "dog/c.gif", "dog/d.png"]
    for name in labeled:
        copy(root, f"labeled/{name}", f"unlabeled/copy_{name[4:]}")
    source, split, names = draw(root)
    aside = {os.path.basename(source.train.names[i]) for i in split.validation}
    kept = {f"copy_{name[4:]}" for name in labeled} - {
        f"copy_{name}" for name in aside
    }
    assert len(kept) == 2
    assert sorted(names) == sorted(
        unlabeled + [f"unlabeled/{name}" for name in kept]
    )
    (line,) = warned
    assert line.startswith(
        "unlabeled images that are copies of those set aside to choose and "
        "score by: 2 (unlabeled/copy_"
    )
    assert line.endswith("): they are left out")
    # A run that goes on reads which they were; another run may take them over.
    path = tmp_path / "split.json"
    splits.write(path, split, source)
    for restored in (
        splits.read(path, source),
        splits.hand_over(path, source, unlabeled_includes_labeled=True),
    ):
        np.testing.assert_array_equal(restored.unlabeled, split.unlabeled)


def test_without_images_set_aside_copies_stay(tmp_path, warned):
    root = distinct(tmp_path / "data")
    copy(root, "labeled/cat/a.png", "unlabeled/copy.png")
    _, split, names = draw(root, validation_fraction=0.0)
    assert "unlabeled/copy.png" in names and not warned
    assert len(split.unlabeled) == 6


# ------------------------------------------- validation images beside test --


def image_folder(root):
    """train/, val/ and test/, of different colours."""
    for number, name in enumerate(GOOD):
        name = name.replace("labeled/c", "train/c").replace(
            "labeled/d", "train/d"
        )
        save(root / name, (20 * number, 0, 0))
    save(root / "val/cat/v.png", (0, 50, 0))
    save(root / "val/dog/v.png", (0, 100, 0))
    return root


def test_validation_images_are_set_aside(tmp_path):
    source, split, unlabeled = draw(image_folder(tmp_path / "data"))
    names = np.array(source.train.names)
    assert [*names[split.validation]] == ["val/cat/v.png", "val/dog/v.png"]
    np.testing.assert_array_equal(source.train.labels[split.validation], [0, 1])
    # --validation_fraction sets no labeled images aside besides.
    assert [*names[split.labeled]] == [
        "train/cat/a.png",
        "train/cat/b.jpg",
        "train/dog/c.gif",
    ]
    assert unlabeled == [*names[:-2]] and len(source.test) == 3
    _, split, _ = draw(tmp_path / "data", labels=2, validation_fraction=0)
    assert len(split.labeled) == 2 and len(split.validation) == 2
    with pytest.raises(InputError, match="val/cat/v.png: is listed as labeled"):
        draw(tmp_path / "data", listed=np.array([0, 2, 5]))
    _, split, _ = draw(tmp_path / "data", listed=np.array([0, 2]))
    assert [*split.labeled] == [0, 2] and len(split.validation) == 2


def test_statistics_without_validation_images(tmp_path):
    with_val = read(image_folder(tmp_path / "data")).statistics()
    shutil.rmtree(tmp_path / "data/val")
    assert read(tmp_path / "data").statistics() == with_val


def test_copies_of_validation_images_are_named(tmp_path, warned):
    root = image_folder(tmp_path / "data")
    copy(root, "val/cat/v.png", "train/cat/copy.png")
    copy(root, "val/dog/v.png", "test/dog/copy.png")
    read(root)
    assert [line.split(":")[0] for line in warned] == [
        "validation images that are labeled ones, too, and trained on with "
        "their class",
        "test images that are validation ones, too, and choose the best step",
    ]


def test_transfer_keeps_validation_images_apart(tmp_path):
    root = image_folder(tmp_path / "data")
    source = folder.load(str(root), on_bad_image="error", for_transfer=True)
    assert len(source.train) == 3 and len(source.test) == 3
    assert source.validation.names == ["val/cat/v.png", "val/dog/v.png"]
    assert not len(source.set_aside)


def test_a_table_of_labels(tmp_path, warned):
    root = tmp_path / "data"
    for number, name in enumerate("abcde"):
        save(root / f"{name}.png", (40 * number, 0, 0))
    (root / "l.csv").write_text(
        "file,class,part,confidence\nb.png,dog,,0.5\nd.png,cat,,\n"
        "a.png,cat,test,\ne.png,dog,test,\n"
    )
    source = folder.load(
        str(root), str(root / "l.csv"), on_bad_image="error", image_size=8
    )
    assert source.train.names == ["d.png", "b.png", "c.png"]
    np.testing.assert_array_equal(source.train.labels, [0, 1, -1])
    assert source.test.names == ["a.png", "e.png"]
    assert "1 of its rows have a class and a confidence" in warned[0]
    assert len(warned) == 1
    assert source.overview.splitlines()[2:] == [
        "labeled: l.csv                                 2        2  1 (cat)  "
        "1 (dog)",
        "unlabeled: all that l.csv gives no class       1",
        "test: l.csv                                    2        2  1 (cat)  "
        "1 (dog)",
    ]
    # Workers that have another table have another dataset.
    identity = source.identity()
    text = (root / "l.csv").read_text().replace("b.png,dog", "c.png,dog")
    (root / "l.csv").write_text(text)
    other = folder.load(str(root), str(root / "l.csv"), on_bad_image="error")
    assert other.identity() != identity
