"""EXIF orientations read in a graph, against Pillow's."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from simmatch_tf.data import orientation

PIXELS = np.random.default_rng(0).integers(0, 256, [9, 7, 3], np.uint8)
graph = tf.function(
    orientation.orientation,
    input_signature=[tf.TensorSpec([], tf.string)],
    autograph=False,
)


def exif(value, *, order="<", kind=3, before=3):
    """A TIFF block: some other tags, then the orientation."""
    rows = [
        (0x0100 + i, 4, 1, struct.pack(order + "I", i)) for i in range(before)
    ]
    form = {1: "B", 3: "H", 4: "I"}[kind]
    packed = struct.pack(order + form, value).ljust(4, b"\0")
    rows.append((0x0112, kind, 1, packed))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(
        order + "I", 8
    )
    body = struct.pack(order + "H", len(rows))
    for tag, kind_of, count, data in rows:
        body += struct.pack(order + "HHI", tag, kind_of, count) + data
    return head + body + b"\0\0\0\0"


def jpeg(block=None, *, before=b""):
    """A JPEG with these bytes behind its start, then an EXIF segment."""
    file = io.BytesIO()
    PIL.Image.fromarray(PIXELS).save(file, "JPEG")
    data = file.getvalue()
    if block is not None:
        segment = b"Exif\0\0" + block
        before += b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    return data[:2] + before + data[2:]


def png(block, *, late=False):
    file = io.BytesIO()
    PIL.Image.fromarray(PIXELS).save(file, "PNG")
    data = file.getvalue()
    chunk = struct.pack(">I", len(block)) + b"eXIf" + block
    chunk += struct.pack(">I", zlib.crc32(b"eXIf" + block))
    place = len(data) - 12 if late else 33
    return data[:place] + chunk + data[place:]


def webp(block, **options):
    file = io.BytesIO()
    PIL.Image.fromarray(PIXELS).save(file, "WEBP", exif=block, **options)
    return file.getvalue()


def pillow(data):
    image = PIL.Image.open(io.BytesIO(data))
    value = image.getexif().get(0x0112, 1)
    return value if value in range(1, 9) else 1


def check(data, wanted=None):
    found = int(graph(tf.constant(data)))
    assert found == pillow(data)
    if wanted is not None:
        assert found == wanted


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("order", "<>")
def test_all_orientations(value, order):
    check(jpeg(exif(value, order=order)), value)
    check(png(exif(value, order=order)), value)
    check(png(exif(value, order=order), late=True), value)
    check(webp(exif(value, order=order), lossless=True), value)
    check(webp(b"Exif\0\0" + exif(value, order=order)), value)


def test_kinds_and_places():
    check(jpeg(exif(6, kind=4)), 6)
    check(jpeg(exif(6, before=0)), 6)
    comment = b"\xff\xfe\x00\x10Exif\0\0........"
    check(jpeg(exif(6), before=comment), 6)
    check(jpeg(exif(6), before=b"\xff\xed\xff\xff" + bytes(2**16 - 3)), 6)
    check(jpeg(exif(8, order=">"), before=b"\xff"), 8)


def test_none():
    check(jpeg(), 1)
    check(jpeg(exif(0)), 1)
    check(jpeg(exif(9)), 1)
    # A text like that of a segment, behind the beginning of the picture.
    data = jpeg()
    check(data[:-2] + b"\xff\xe1\x00\x40Exif\0\0" + exif(6) + data[-2:], 1)
    for kind in ("PNG", "GIF", "BMP", "WEBP"):
        file = io.BytesIO()
        PIL.Image.fromarray(PIXELS).save(file, kind)
        check(file.getvalue(), 1)


def test_damaged_bytes_are_no_error():
    rng = np.random.default_rng(0)
    whole = [
        *(jpeg(exif(6)), png(exif(6, order=">")), webp(exif(6))),
        *(b"", b"\xff\xd8Exif\0\0", b"RIFF", b"RIFF....WEBPEXIF"),
    ]
    for data in whole:
        for size in range(0, min(len(data), 120)):
            assert 1 <= int(graph(tf.constant(data[:size]))) <= 8
        for _ in range(300):
            bad = bytearray(data)
            for place in rng.integers(0, max(1, min(len(bad), 90)), 3):
                if place < len(bad):
                    bad[place] = rng.integers(256)
            assert 1 <= int(graph(tf.constant(bytes(bad)))) <= 8
