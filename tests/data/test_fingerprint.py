import os
import shutil

import pytest

from simmatch_tf import config as config_lib
from simmatch_tf.data import fingerprint, layout
from simmatch_tf.data.sources import digits as digits_lib
from simmatch_tf.flags.errors import InputError

NAMES = ("labeled/a/1.png", "labeled/b/2.png", "unlabeled/caf\u00e9 \\.png")


@pytest.fixture
def root(tmp_path):
    for number, name in enumerate(NAMES):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"image %d" % number)
    return tmp_path / "data"


def of(root, *, contents=True):
    """The files in a folder; `contents`: with their digests."""
    listing = layout.Listing(str(root))
    paths = [f"{listing.root}/{path}" for path in listing.paths]
    known = dict(zip(listing.names, fingerprint.digests(paths), strict=True))
    return listing.fingerprint(known if contents else None)


def later(path):
    """Another time."""
    status = os.stat(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def test_written_and_read_back(root, tmp_path):
    written = of(root)
    written.write(tmp_path / "data.json")
    again = fingerprint.read(tmp_path / "data.json")
    assert again.files == written.files and list(again.files) == list(NAMES)
    assert fingerprint.compare(again, of(root)).text() == ""
    assert again.digest() == written.digest()
    assert len((tmp_path / "data.json").read_text().splitlines()) == 5
    assert list(tmp_path.glob(".tmp*")) == []


@pytest.mark.parametrize(
    "content", ["", "[1]", "{", '{"a": 1}', '{"a": "xyz"}']
)
def test_a_file_that_is_no_fingerprint(tmp_path, content):
    path = tmp_path / "data.json"
    path.write_text(content)
    with pytest.raises(ValueError):
        fingerprint.read(path)


@pytest.mark.parametrize("times", [True, False])
def test_moved_files_are_the_same(root, tmp_path, times):
    then = of(root)
    copy = shutil.copy2 if times else shutil.copyfile
    shutil.copytree(root, tmp_path / "moved", copy_function=copy)
    if not times:
        for name in NAMES:
            later(tmp_path / "moved" / name)
    shutil.rmtree(root)
    now = of(tmp_path / "moved", contents=False)
    changes = fingerprint.compare(then, now)
    assert changes.text() == "" and not changes.touched


def test_changes_are_named(root):
    then = of(root)
    shutil.copy(root / NAMES[0], root / "labeled/a/4.png")
    shutil.copy(root / NAMES[0], root / "labeled/a/3.png")
    (root / NAMES[2]).unlink()
    (root / NAMES[0]).write_bytes(b"image X")  # of the same size
    later(root / NAMES[0])
    (root / NAMES[1]).write_bytes(b"another size")
    for contents in (True, False):
        changes = fingerprint.compare(then, of(root, contents=contents))
        assert changes.text() == (
            "2 are new (labeled/a/3.png, labeled/a/4.png), 1 is gone "
            f"({NAMES[2]}), 2 are changed ({NAMES[0]}, {NAMES[1]})"
        )
    assert of(root).digest() != then.digest()


def test_many_are_not_all_named(root):
    then = of(root)
    for number in range(10, 20):
        (root / f"unlabeled/{number}.png").write_bytes(b"x")
    assert fingerprint.compare(then, of(root)).text() == (
        "10 are new (unlabeled/10.png, unlabeled/11.png, unlabeled/12.png, …)"
    )


def test_times_alone_where_contents_are_not_known(root):
    then = of(root, contents=False)
    later(root / NAMES[0])
    changes = fingerprint.compare(then, of(root, contents=False))
    assert changes.text() == "" and changes.touched == [NAMES[0]]


def test_the_fingerprint_of_flags(root, tmp_path, monkeypatch):
    def now(then=None, **flags):
        config = config_lib.Config(steps=1, **flags)
        return fingerprint.of_config(
            config, then or fingerprint.Fingerprint({})
        )

    assert now(dataset="folder", data_dir=str(root)).files.keys() == {*NAMES}
    with pytest.raises(InputError, match="/gone: there is no such folder"):
        now(dataset="folder", data_dir=str(root / "gone"))
    digits = now(dataset="digits", labels=10)
    assert fingerprint.compare(digits, digits_lib.fingerprint()).text() == ""
    ((size, _, digest),) = digits.files.values()
    assert size > 10_000 and len(digest) == 32
    assert now(dataset="custom", labels=10) is None
    # Of TFDS, where it is not prepared.
    name = "cifar10/3.0.2/cifar10-train.tfrecord-00000-of-00001"
    then = fingerprint.Fingerprint({name: (4, 0, None)})
    flags = {"dataset": "cifar10", "labels": 10, "tfds_dir": str(tmp_path)}
    assert now(then, **flags) is None
    (tmp_path / name).parent.mkdir(parents=True)
    changes = fingerprint.compare(then, now(then, **flags))
    assert changes.text() == f"1 is gone ({name})"
    (tmp_path / name).write_bytes(b"four")
    assert fingerprint.compare(then, now(then, **flags)).text() == ""
    (tmp_path / name).write_bytes(b"or five")
    assert (
        "1 is changed" in fingerprint.compare(then, now(then, **flags)).text()
    )
