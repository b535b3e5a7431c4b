import io
import os
import struct
import sys
import time
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import tensorflow as tf

from simmatch_tf import io as io_lib
from simmatch_tf import terminal
from simmatch_tf.data import files, viewing
from simmatch_tf.flags.errors import InputError

WIDTH, HEIGHT = 53, 37
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
PIXELS = np.stack(
    [ROWS * 6, COLUMNS * 4, 2 * (ROWS + COLUMNS)], axis=-1
).astype(np.uint8)
RGB = PIL.Image.fromarray(PIXELS)
GREY = RGB.convert("L")
CMYK = RGB.convert("CMYK")
PALETTE = RGB.quantize(64)
ALPHA = RGB.copy()
ALPHA.putalpha(PIL.Image.fromarray((COLUMNS * 4).astype(np.uint8)))
TURNED = RGB.rotate(180)
SIXTEEN = (np.arange(HEIGHT * WIDTH) * 33).reshape(HEIGHT, WIDTH)
# Adam7: first row and column, steps down and to the right.
INTERLACED = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, data):
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png(pixels, *, bits=8, colour=2, passes=((0, 0, 1, 1),), behind=b""):
    """A PNG file of kinds that Pillow does not write."""
    height, width = pixels.shape[:2]
    rows = [
        b"\0" + row.tobytes()
        for top, left, down, right in passes
        for row in pixels[top::down, left::right]
    ]
    interlaced = len(passes) > 1
    header = struct.pack(
        ">IIBBBBB", width, height, bits, colour, 0, 0, interlaced
    )
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"".join(rows)))
        + behind
        + chunk(b"IEND", b"")
    )


def bmp(pixels, *, bits=24, top_down=False):
    """A BMP file whose rows are given as they are to be stored."""
    height, width = pixels.shape[:2]
    size = -(-width * bits // 32) * 4
    body = b"".join(row.tobytes().ljust(size, b"\0") for row in pixels)
    header = struct.pack("<2sIII", b"BM", 54 + len(body), 0, 54)
    header += struct.pack(
        "<IiiHHIIiiII",
        *(40, width, -height if top_down else height),
        *(1, bits, 0, 0, 0, 0, 0, 0),
    )
    return header + body


def without_adobe(jpeg):
    start = jpeg.index(b"\xff\xee")
    length = struct.unpack(">H", jpeg[start + 2 : start + 4])[0]
    return jpeg[:start] + jpeg[start + 2 + length :]


def exif(orientation):
    tags = PIL.Image.Exif()
    tags[0x0112] = orientation
    return tags


SAME = {
    "rgb.jpg": encode(RGB, "JPEG", quality=95),
    "progressive.jpg": encode(RGB, "JPEG", progressive=True),
    "grey.jpeg": encode(GREY, "JPEG"),
    "cmyk.jpg": encode(CMYK, "JPEG", quality=95),
    "multi.jpg": encode(RGB, "MPO", save_all=True, append_images=[TURNED]),
    "rgb.png": encode(RGB, "PNG"),
    "grey.png": encode(GREY, "PNG"),
    "bits.png": encode(RGB.convert("1"), "PNG"),
    "palette.png": encode(PALETTE, "PNG"),
    "palette4.png": encode(RGB.quantize(4), "PNG"),
    "alpha.png": encode(ALPHA, "PNG"),
    "grey_alpha.png": encode(ALPHA.convert("LA"), "PNG"),
    "transparent.png": encode(RGB, "PNG", transparency=(0, 0, 0)),
    "transparent_palette.png": encode(PALETTE, "PNG", transparency=3),
    "interlaced.png": png(PIXELS, passes=INTERLACED),
    "animated.png": encode(RGB, "PNG", save_all=True, append_images=[TURNED]),
    "opaque.gif": encode(RGB, "GIF"),
    "grey.gif": encode(GREY, "GIF"),
    "animated.gif": encode(
        PALETTE, "GIF", save_all=True, append_images=[TURNED.quantize(64)]
    ),
    "rgb.bmp": encode(RGB, "BMP"),
    "alpha.bmp": encode(ALPHA, "BMP"),
    "grey.bmp": encode(GREY, "BMP"),
    "top_down.bmp": bmp(PIXELS[..., ::-1], top_down=True),
    "one.png": encode(RGB.crop((5, 5, 6, 6)), "PNG"),
    "one.jpg": encode(RGB.crop((5, 5, 6, 6)), "JPEG"),
    "one.gif": encode(RGB.crop((5, 5, 6, 6)), "GIF"),
    "one.bmp": encode(RGB.crop((5, 5, 6, 6)), "BMP"),
    "is_png.jpg": encode(RGB, "PNG"),
    "is_gif.png": encode(RGB, "GIF"),
}
SMALL_FRAME = bytearray(encode(RGB, "GIF"))
SMALL_FRAME[6:10] = struct.pack("<HH", WIDTH + 10, HEIGHT + 10)
HUGE = SAME["rgb.png"][:8] + chunk(
    b"IHDR", struct.pack(">IIBBBBB", 20001, 10000, 8, 2, 0, 0, 0)
)
OTHERWISE = "otherwise than viewers show it; save it as an RGB PNG"
UNDECODABLE = "TensorFlow cannot decode it"
BAD = {
    "empty.jpg": (b"", "the file is empty"),
    "text.png": (b"no image\n" * 9, "is no JPEG, PNG, GIF, BMP or WebP image"),
    "tiff.jpg": (
        encode(RGB, "TIFF"),
        "is no JPEG, PNG, GIF, BMP or WebP image",
    ),
    "short.jpg": (SAME["rgb.jpg"][:-300], UNDECODABLE),
    "end.jpg": (SAME["rgb.jpg"][:-1], UNDECODABLE),
    "short.png": (SAME["rgb.png"][:-30], UNDECODABLE),
    "short.gif": (SAME["opaque.gif"][:-300], UNDECODABLE),
    "short.bmp": (SAME["rgb.bmp"][:-1], UNDECODABLE),
    "header.png": (SAME["rgb.png"][:20], "is no|header cannot be read"),
    "adobe.jpg": (without_adobe(SAME["cmyk.jpg"]), OTHERWISE),
    "transparent.gif": (encode(PALETTE, "GIF", transparency=3), OTHERWISE),
    "small_frame.gif": (bytes(SMALL_FRAME), OTHERWISE),
    "palette.bmp": (encode(PALETTE, "BMP"), OTHERWISE),
    "bits.bmp": (encode(RGB.convert("1"), "BMP"), UNDECODABLE),
    "sixteen.bmp": (bmp(SIXTEEN.astype("<u2"), bits=16), UNDECODABLE),
    "huge.png": (
        HUGE + SAME["rgb.png"][33:],
        "has 20001×10000 pixels, more than 200 megapixels",
    ),
}


def write(folder, contents):
    folder.mkdir(exist_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return [str(folder / name) for name in contents]


def rotated(pixels, orientation):
    image = PIL.Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    return np.asarray(PIL.ImageOps.exif_transpose(image))


@pytest.mark.parametrize("name", SAME)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_read_as_viewers_show_it(name, tmp_path):
    (path,) = write(tmp_path, {name: SAME[name]})
    orientation, pixels, *_ = files.examine(path)
    with PIL.Image.open(path) as image:
        shown = np.asarray(image.convert("RGB")).astype(int)
    assert orientation == 1 and pixels.dtype == np.uint8
    assert pixels.shape == shown.shape
    tolerance = 4 if name == "cmyk.jpg" else 0
    assert np.abs(pixels - shown).max() <= tolerance


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_upper_byte_of_16_bits(channels, tmp_path):
    values = np.random.default_rng(0).integers(0, 2**16, [9, 7, channels])
    colour = {1: 0, 3: 2, 4: 6}[channels]
    data = png(values.astype(">u2"), bits=16, colour=colour)
    (path,) = write(tmp_path, {"a.png": data})
    expected = np.broadcast_to(values[..., :3] >> 8, [9, 7, 3])
    np.testing.assert_array_equal(files.examine(path)[1], expected)


@pytest.mark.parametrize("name", BAD)
def test_refused_with_a_reason(name, tmp_path):
    data, reason = BAD[name]
    (path,) = write(tmp_path, {name: data})
    with viewing.silent_pillow():
        with pytest.raises(ValueError, match=reason) as caught:
            files.examine(path)
    assert "{{" not in str(caught.value) and "[Op" not in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"save_all": True}])
def test_webp_as_viewers_show_it_or_not_at_all(options, tmp_path):
    images = {"rgb": RGB, "alpha": ALPHA}
    if options:
        options = {**options, "append_images": [TURNED]}
    for name, image in images.items():
        data = encode(image, "WEBP", **options)
        (path,) = write(tmp_path, {f"{name}.jpg": data})
        with PIL.Image.open(path) as shown:
            expected = np.asarray(shown.convert("RGB")).astype(int)
        try:
            pixels = files.examine(path)[1]
        except ValueError as error:
            # TensorFlow 2.21 reads it, and an earlier one may not.
            assert "TensorFlow" in str(error)
        else:
            assert np.abs(pixels - expected).max() <= 4


def test_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    os.symlink(tmp_path / "gone", tmp_path / "broken.jpg")
    os.symlink(tmp_path / "loop.jpg", tmp_path / "loop.jpg")
    for name, reason in {
        "pipe.jpg": "is no regular file",
        "broken.jpg": "a symbolic link to a file that is not there",
        "loop.jpg": "Too many levels of symbolic links",
        "gone.jpg": "No such file",
    }.items():
        with pytest.raises(ValueError, match=reason):
            files.examine(str(tmp_path / name))


def test_no_permission(tmp_path, monkeypatch):
    (path,) = write(tmp_path, {"a.png": SAME["rgb.png"]})

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    inspected = files.inspect([path], cache=None)
    assert inspected.reasons == {0: "Permission denied"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientations(kind, tmp_path):
    paths = write(
        tmp_path,
        {f"{n}": encode(RGB, kind, exif=exif(n)) for n in range(1, 9)},
    )
    inspected = files.inspect(paths, cache=None)
    np.testing.assert_array_equal(
        inspected.contents.orientations, np.arange(1, 9)
    )
    # Turned by what was noted, the pixels are those that a viewer shows.
    for n, path in enumerate(paths, 1):
        pixels = rotated(files.examine(path)[1], n)
        with PIL.Image.open(path) as image:
            shown = PIL.ImageOps.exif_transpose(image).convert("RGB")
        np.testing.assert_array_equal(pixels, np.asarray(shown))


def test_orientation_behind_the_pixels_or_none(tmp_path):
    data = exif(6).tobytes().removeprefix(b"Exif\0\0")
    contents = {
        "behind.png": png(PIXELS, behind=chunk(b"eXIf", data)),
        "damaged.png": png(PIXELS, behind=chunk(b"eXIf", b"II*\0\xff")),
        "nine.jpg": encode(RGB, "JPEG", exif=exif(9)),
        "damaged.jpg": encode(RGB, "JPEG", exif=b"Exif\0\0nonsense"),
    }
    inspected = files.inspect(write(tmp_path, contents), cache=None)
    assert not inspected.reasons
    np.testing.assert_array_equal(inspected.contents.orientations, [6, 1, 1, 1])


def test_statistics_are_those_of_all_pixels(tmp_path):
    rng = np.random.default_rng(1)
    shapes = [(5, 7), (300, 200), (1, 1), (2, 9000)]
    images = [rng.integers(0, 256, [*s, 3], np.uint8) for s in shapes]
    images.append(np.full([4, 4, 3], 255, np.uint8))
    paths = write(tmp_path, {f"{i}.png": png(x) for i, x in enumerate(images)})
    inspected = files.inspect(paths, cache=None)
    kept = np.array([0, 1, 3])
    pixels = np.concatenate([images[i].reshape(-1, 3) for i in kept]) / 255
    mean, std = inspected.statistics(kept)
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=0), rtol=1e-9)
    # One colour only: nothing is to be divided by 0.
    assert inspected.statistics(np.array([4])) == ([1.0] * 3, [1e-3] * 3)


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that were decoded."""
    seen, examine = [], files.examine

    def note(path):
        seen.append(os.path.basename(path))
        return examine(path)

    monkeypatch.setattr(files, "examine", note)
    return seen


def check_same(one, other):
    assert one.reasons == other.reasons
    np.testing.assert_array_equal(one.contents, other.contents)


def test_decoded_once_and_again_when_changed(tmp_path, decoded, capsys):
    contents = {f"{i}.jpg": SAME["rgb.jpg"] for i in range(9)}
    contents["turned.jpg"] = encode(RGB, "JPEG", exif=exif(6))
    contents["bad.jpg"] = b"bad"
    paths = write(tmp_path / "images", contents)
    cache = tmp_path / "a" / "b" / "cache.npz"
    first = files.inspect(paths, cache=cache)
    assert sorted(decoded) == sorted(contents)
    assert list(cache.parent.iterdir()) == [cache]
    said = capsys.readouterr().err.splitlines()
    assert said == ["checking 11 new images; this is done once"]

    # In another order, the good ones are known. The bad one is tried again: a
    # change of permissions would not show in its size and time.
    decoded.clear()
    again = files.inspect(paths[::-1], cache=cache)
    assert decoded == ["bad.jpg"]
    np.testing.assert_array_equal(
        again.contents.sums, first.contents.sums[::-1]
    )
    np.testing.assert_array_equal(
        again.contents.orientations, first.contents.orientations[::-1]
    )

    decoded.clear()
    write(tmp_path / "images", {"3.jpg": SAME["grey.jpeg"]})
    status = os.stat(paths[4])
    os.utime(paths[4], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    write(tmp_path / "images", {"new.jpg": SAME["rgb.png"]})
    paths.append(str(tmp_path / "images" / "new.jpg"))
    changed = files.inspect(paths, cache=cache)
    assert sorted(decoded) == ["3.jpg", "4.jpg", "bad.jpg", "new.jpg"]
    check_same(changed, files.inspect(paths, cache=None))
    assert (changed.contents.sums[3] != first.contents.sums[3]).any()


def test_a_file_that_is_changed_in_place(tmp_path, decoded):
    """Its size and the time of its last change stay, as of exiftool -P."""
    cache = tmp_path / "cache.npz"
    (path,) = write(tmp_path / "images", {"a.bmp": SAME["rgb.bmp"]})
    files.inspect([path], cache=cache)
    status = os.stat(path)
    write(tmp_path / "images", {"a.bmp": encode(TURNED, "BMP")})
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert os.stat(path).st_size == status.st_size
    inspected = files.inspect([path], cache=cache)
    check_same(inspected, files.inspect([path], cache=None))
    # Another file in its place, with its times.
    write(tmp_path / "images", {"b.bmp": SAME["rgb.bmp"]})
    other = tmp_path / "images" / "b.bmp"
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    inspected = files.inspect([path], cache=cache)
    check_same(inspected, files.inspect([path], cache=None))


def test_nothing_is_decoded_again(tmp_path, decoded):
    paths = write(tmp_path, {f"{i}.jpg": SAME["rgb.jpg"] for i in range(50)})
    first = files.inspect(paths, cache=tmp_path / "cache.npz")
    assert len(decoded) == 50
    check_same(first, files.inspect(paths, cache=tmp_path / "cache.npz"))
    assert len(decoded) == 50


@pytest.fixture
def logged(monkeypatch):
    """Warnings, as they are read."""
    lines = []
    monkeypatch.setattr(terminal, "warn", lines.append)
    return lines


def test_damaged_caches_are_made_again(tmp_path, decoded, logged):
    paths = write(tmp_path / "images", {"a.png": SAME["rgb.png"]})
    cache = tmp_path / "cache.npz"
    first = files.inspect(paths, cache=cache)
    good = cache.read_bytes()
    damaged = [b"", b"nonsense", good[:-50], good[:100] + b"?" + good[101:]]
    for data in damaged:
        cache.write_bytes(data)
        decoded.clear()
        check_same(first, files.inspect(paths, cache=cache))
        assert decoded == ["a.png"]
        assert cache.read_bytes() == good
    assert len(logged) == len(damaged)
    assert all("cache.npz: is made again" in line for line in logged)


def test_other_versions_decode_again(tmp_path, decoded, monkeypatch):
    paths = write(tmp_path / "images", {"a.png": SAME["rgb.png"]})
    files.inspect(paths, cache=tmp_path / "cache.npz")
    monkeypatch.setattr(tf, "__version__", "9.9")
    files.inspect(paths, cache=tmp_path / "cache.npz")
    assert decoded == ["a.png"] * 2


def test_a_cache_that_cannot_be_written(tmp_path, logged):
    paths = write(tmp_path / "images", {"a.png": SAME["rgb.png"]})
    (tmp_path / "file").write_text("")
    inspected = files.inspect(paths, cache=tmp_path / "file" / "cache.npz")
    assert inspected.contents.pixels == [WIDTH * HEIGHT]
    assert any("cannot be written" in line for line in logged)
    logged.clear()
    (tmp_path / "taken.npz").mkdir()
    files.inspect(paths, cache=tmp_path / "taken.npz")
    assert "taken.npz: cannot be written" in logged[-1]
    assert not list(tmp_path.glob(".tmp*"))


def test_an_interrupted_inspection_goes_on(tmp_path, monkeypatch):
    paths = write(tmp_path, {f"{i}.jpg": SAME["rgb.jpg"] for i in range(400)})
    seen, examine = [], files.examine

    def interrupted(path):
        seen.append(path)
        if len(seen) == 20:
            raise KeyboardInterrupt
        return examine(path)

    monkeypatch.setattr(files, "examine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.inspect(paths, cache=tmp_path / "cache.npz")
    before = len(seen)
    assert before < 400
    inspected = files.inspect(paths, cache=tmp_path / "cache.npz")
    assert len(seen) - before == 401 - before
    assert (
        not inspected.reasons
        and (inspected.contents.pixels == WIDTH * HEIGHT).all()
    )


def test_a_signal_is_not_held_up_by_photographs_in_hand(tmp_path, monkeypatch):
    """Each thread leaves the files that it took at once."""
    paths = write(tmp_path, {f"{i}.jpg": SAME["rgb.jpg"] for i in range(9)})
    seen, examine = [], files.examine

    class Pool(files.concurrent.futures.ThreadPoolExecutor):
        def map(self, work, chunks):
            self.submit(work, np.concatenate(chunks))
            raise KeyboardInterrupt

    def slow(path):
        seen.append(path)
        time.sleep(0.01)
        return examine(path)

    monkeypatch.setattr(files, "examine", slow)
    monkeypatch.setattr(files.concurrent.futures, "ThreadPoolExecutor", Pool)
    with pytest.raises(KeyboardInterrupt):
        files.inspect(paths, cache=None)
    assert len(seen) < 9


def test_cache_path(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a").mkdir()
    os.symlink("a", tmp_path / "link")
    path = files.cache_path(str(tmp_path / "a"))
    assert path.parent == tmp_path / "cache" / "simmatch_tf"
    assert path == files.cache_path(str(tmp_path / "link"))
    assert path != files.cache_path(str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    path = files.cache_path(str(tmp_path / "a"))
    assert path.parent == tmp_path / ".cache" / "simmatch_tf"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal_only(tmp_path, monkeypatch):
    paths = write(tmp_path, {f"{i}.jpg": SAME["rgb.jpg"] for i in range(5)})
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        files.inspect(paths, cache=None)
        assert ("5/5" in stream.getvalue()) == stream.isatty()
        assert ("image/s" in stream.getvalue()) == stream.isatty()


def inspection(count, reasons):
    result = files.Inspection.empty(count)
    result.reasons.update(reasons)
    return result


def test_usable(logged):
    paths = [f"/{i}.jpg" for i in range(2000)]
    for policy in ("error", "skip"):
        kept = files.usable(paths, inspection(2000, {}), policy)
        np.testing.assert_array_equal(kept, np.arange(2000))
    assert not logged
    # Threads find them in any order.
    bad = inspection(2000, {i: f"reason {i}" for i in range(1900, 1880, -1)})
    kept = files.usable(paths, bad, "skip")
    np.testing.assert_array_equal(kept, [*range(1881), *range(1901, 2000)])
    assert logged[0] == "/1881.jpg: reason 1881" and len(logged) == 11
    assert logged[-1].startswith("20 of 2000 images cannot be used, and are")
    with pytest.raises(InputError) as error:
        files.usable(paths, bad, "error")
    assert str(error.value) == (
        "/1881.jpg: reason 1881. In all, 20 of 2000 images cannot be used: "
        "remove or repair them, or leave out such images with "
        "--on_bad_image=skip"
    )
    bad.reasons[0] = "is 1 % and one more"
    for policy in ("error", "skip"):
        with pytest.raises(
            InputError, match="^/0.jpg: is 1 %.* 21 of 2000 .* more than the 1%"
        ):
            files.usable(paths, bad, policy)


def test_read_in_a_dataset_gives_the_bytes(tmp_path):
    contents = {
        "a.png": SAME["rgb.png"],
        "é ü.jpg": SAME["rgb.jpg"],
        os.fsdecode(b"\xff\xfe.gif"): SAME["opaque.gif"],
    }
    # TensorFlow copies tensors of up to 128 elements into a graph.
    images = files.FileImages(
        paths=write(tmp_path, contents) * 50,
        labels=np.array([0, 1, -1] * 50),
        names=["a.png", "é ü.jpg", r"\xff\xfe.gif"] * 50,
        orientations=np.array([1, 8, 3] * 50, np.uint8),
    )
    assert len(images) == 150 and images.encoded
    assert images.labels.dtype == np.int32

    @tf.function
    def graph():
        dataset = tf.data.Dataset.range(3).map(images.read)
        return dataset.batch(3).get_single_element()

    for encoded, orientations in (
        graph(),
        tf.data.Dataset.range(3).map(images.read).batch(3).get_single_element(),
    ):
        assert encoded.numpy().tolist() == list(contents.values())
        np.testing.assert_array_equal(orientations, [1, 8, 3])
        assert orientations.dtype == tf.int32
    # Captured, not copied into the graph.
    definition = graph.get_concrete_function().graph.as_graph_def()
    assert b"a.png" not in definition.SerializeToString()
    encoded, orientation = images.read(tf.constant(1, tf.int64))
    assert encoded.numpy() == SAME["rgb.jpg"] and orientation.numpy() == 8


def test_files_taken(tmp_path):
    names = ["rgb.png", "rgb.jpg", "opaque.gif"]
    images = files.FileImages(
        paths=write(tmp_path, {name: SAME[name] for name in names}),
        labels=np.array([0, 1, -1]),
        names=names,
        orientations=np.array([1, 8, 3], np.uint8),
    )
    images.read(tf.constant(0))  # what is kept for reading is not handed on
    taken = images.take(np.array([2, 0, 2, 1]))
    assert taken.names == ["opaque.gif", "rgb.png", "opaque.gif", "rgb.jpg"]
    assert taken.labels.tolist() == [-1, 0, -1, 1]
    read = [taken.read(tf.constant(place)) for place in range(4)]
    assert [one.numpy() for one, _ in read] == [SAME[n] for n in taken.names]
    assert [turn.numpy() for _, turn in read] == [3, 1, 3, 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.array([0, 1])}, "'labels': 2, .*but as many of each"),
        ({"labels": np.array([-2])}, "labels from -2"),
        ({"names": []}, "'names': 0"),
        (
            {"paths": [], "labels": [], "names": [], "orientations": []},
            "at least 1",
        ),
    ],
)
def test_lengths_and_labels_are_checked(changes, message):
    parts = {
        "paths": ["/a"],
        "labels": np.array([0]),
        "names": ["a"],
        "orientations": np.array([1], np.uint8),
    }
    with pytest.raises(ValueError, match=message):
        files.FileImages(**{**parts, **changes})


def test_printable():
    assert io_lib.printable("/é.jpg") == "/é.jpg"
    assert io_lib.printable(os.fsdecode(b"/\xe9.jpg")) == r"/\xe9.jpg"
