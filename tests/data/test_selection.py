"""Which files --images names."""

import os

import pytest

from simmatch_tf.data import selection
from simmatch_tf.flags.errors import InputError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Folders with links in circles, hidden files and odd names."""
    for name in (
        "a/1.png",
        "a/b/2.png",
        "a/b/c/3.jpg",
        ".h/4.png",
        "[x]/5.png",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "a" / ".hidden.png").touch()
    (tmp_path / "a" / "notes.txt").touch()
    for number in range(3):
        (tmp_path / "a" / f"up{number}").symlink_to("..")
    (tmp_path / "b").symlink_to("a/b")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a/**/*.png", ["a/1.png", "a/b/2.png"]),
        ("a/*/*.png", ["a/b/2.png"]),
        ("a/b/**", ["a/b/2.png", "a/b/c/3.jpg"]),
        ("a/**/b/**/*.jpg", ["a/b/c/3.jpg"]),
        ("a/**/c/*", ["a/b/c/3.jpg"]),
        ("b/**/*.jpg", ["b/c/3.jpg"]),
        ("a/?.png", ["a/1.png"]),
    ],
)
def test_patterns(folder, pattern, names):
    matches = selection.find(pattern)
    here = [n for n in matches.names if "/up" not in n]
    assert here == names
    assert matches.paths == [str(folder / name) for name in matches.names]
    # As often as there are ways to it: no more.
    real = {os.path.realpath(path) for path in matches.paths}
    assert len(matches.names) <= 4 * len(real)
    everywhere = selection.find(f"{folder}/{pattern}")
    assert set(everywhere.names) == set(everywhere.paths)
    assert len(everywhere) == len(matches)


def test_patterns_from_the_current_folder(folder):
    names = selection.find("**/*.png").names
    assert sorted(os.path.basename(n) for n in names) == [
        "1.png",
        "2.png",
        "5.png",
    ]


def test_a_folder_shows_each_image_once(folder):
    matches = selection.find(str(folder))
    assert sorted(os.path.basename(n) for n in matches.names) == [
        "1.png",
        "2.png",
        "3.jpg",
        "5.png",
    ]


def test_a_folder_says_what_it_leaves_out(folder, monkeypatch):
    lines = []
    monkeypatch.setattr(selection.terminal, "warn", lines.append)
    (folder / "mixed" / "in").mkdir(parents=True)
    for name in ("a.tif", "in/b.TIF", "notes", "c.png"):
        (folder / "mixed" / name).write_bytes(b"")
    assert len(selection.find("mixed")) == 1
    assert lines == [
        "--images=mixed: 3 files are left out, as their names do not end in "
        ".jpg .jpeg .png .bmp .gif .webp: 2 .tif, 1 without ending"
    ]


def test_lists(folder):
    odd = b"dir/\xff\xe2\x80\xa8 x.png"
    (folder / "list").write_bytes(b"\xef\xbb\xbfa/1.png\r\n\n# no\n" + odd)
    listed = selection.find("list")
    assert listed.names == ["a/1.png", os.fsdecode(odd)]
    assert listed.paths[0] == str(folder / "a/1.png")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_lists_as_editors_save_them(folder, encoding):
    (folder / "list").write_text("a/1.png\r\n# é\n", encoding=encoding)
    assert selection.find("list").names == ["a/1.png"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nope", "no such file or folder"),
        ("pipe", "is no regular file"),
        ("nope/**/*.png", "names no image"),
        ("nope/*.png", "names no image"),
        ("data", "neither an image nor a list"),
        ("odd", "neither an image nor a list"),
    ],
)
def test_names_that_are_no_images(folder, name, message):
    os.mkfifo(folder / "pipe")
    (folder / "data").write_bytes(b"II*\0" + bytes(40))
    (folder / "odd").write_bytes(b"\xff\xfea")
    with pytest.raises(InputError, match=f"--images={name.split('/')[0]}.*"):
        selection.find(name)
    with pytest.raises(InputError, match=message):
        selection.find(name)


def test_a_link_to_a_folder_that_is_not_there(folder):
    (folder / "a" / "day 2").symlink_to("/mnt/usb/day 2")
    with pytest.raises(InputError, match="/a/day 2: is a link to /mnt/usb/day"):
        selection.find(str(folder))


def test_a_folder_that_cannot_be_read(folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/c"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"/a/b/c: cannot be read \(Permiss"):
        selection.find(str(folder))


def test_folders_of_the_system_are_left_out(folder, monkeypatch):
    lines = []
    monkeypatch.setattr(selection.terminal, "warn", lines.append)
    before = selection.find(str(folder / "a" / "b"))
    thumbnail = folder / "a" / "b" / "@eaDir" / "2.png" / "THUMB.jpg"
    thumbnail.parent.mkdir(parents=True)
    thumbnail.touch()
    assert selection.find(str(folder / "a" / "b")) == before
    (line,) = lines
    assert line.endswith("deleted files are left out: 1 @eaDir")
