"""EXIF orientations read in a graph, against Pillow's."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
import tensorflow as tf

from simmatch_tf.data import decoding, files

PIXELS = np.random.default_rng(0).integers(0, 256, [9, 7, 3], np.uint8)
graph = tf.function(
    decoding.exif_orientation,
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
    orientation = int(graph(tf.constant(data)))
    assert orientation == pillow(data)
    if wanted is not None:
        assert orientation == wanted


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


def test_images_without_an_orientation():
    check(jpeg(), 1)
    check(jpeg(exif(0)), 1)
    check(jpeg(exif(9)), 1)
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


def raw_profile(value, *, compressed=True):
    """What ImageMagick writes of EXIF into a PNG."""
    block = b"Exif\0\0" + exif(value)
    info = PIL.PngImagePlugin.PngInfo()
    text = f"\nexif\n{len(block):8}\n{block.hex()}\n"
    info.add_text("Raw profile type exif", text, zip=compressed)
    return {"pnginfo": info}


XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation='
    '"6"/></x:xmpmeta>'
)


def xmp_png():
    info = PIL.PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", XMP, zip=True)
    return {"pnginfo": info}


def saved(kind="PNG", **options):
    file = io.BytesIO()
    PIL.Image.fromarray(PIXELS).save(file, kind, **options)
    return file.getvalue()


def xmp_jpeg(*, with_exif=None):
    segment = b"http://ns.adobe.com/xap/1.0/\0" + XMP.encode()
    segment = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    return jpeg(with_exif, before=segment)


# A file, and the orientation that counts; and whether viewers turn it so.
FILES = {
    "exif.jpg": (jpeg(exif(6)), 6, True),
    "far.jpg": (
        jpeg(exif(6), before=3 * (b"\xff\xe2\xff\xff" + bytes(2**16 - 3))),
        *(6, True),
    ),
    "both.jpg": (xmp_jpeg(with_exif=exif(3)), 3, True),
    "exif.png": (png(exif(8), late=True), 8, True),
    "exif.webp": (webp(exif(6), lossless=True), 6, True),
    "xmp.jpg": (xmp_jpeg(), 1, False),
    "xmp.png": (saved(**xmp_png()), 1, False),
    "raw.png": (saved(**raw_profile(6)), 1, False),
    "raw_text.png": (saved(**raw_profile(6, compressed=False)), 1, False),
    "xmp.webp": (saved("WEBP", lossless=True, xmp=XMP.encode()), 1, False),
    "upright_raw.png": (saved(**raw_profile(1)), 1, True),
}


@pytest.mark.parametrize("name", FILES)
def test_one_rule_for_training_predicting_and_exports(tmp_path, name):
    data, wanted, as_viewers = FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    examined = files.examine(str(path))
    assert examined.orientation == wanted
    assert int(graph(tf.constant(data))) == wanted
    expected = decoding.decode(tf.constant(data), tf.constant(wanted)).numpy()
    small = np.asarray(files.small(str(path), 96)).astype(int)
    assert np.abs(small - expected).max() <= 4
    # What viewers turn otherwise is remarked.
    assert examined.remarks == files.TURNED * (not as_viewers)


def test_a_remark_names_count_and_example(capsys):
    files.warn(["a.jpg", "b.jpg", "c.jpg"], np.array([0, 1, 3]))
    turned, dark = capsys.readouterr().err.splitlines()
    assert turned.startswith(
        "Warning: 2 of 3 images are turned by viewers in another way than here "
        "(such as b.jpg): only the orientation in EXIF is read"
    )
    assert dark.startswith("Warning: 1 of 3 images have 16 bits a channel, but")
    files.warn(["a.jpg"], np.array([0]))
    assert not capsys.readouterr().err


@pytest.mark.parametrize("high, dark", [(4095, True), (60000, False)])
def test_12_bits_in_16_are_remarked(tmp_path, high, dark):
    grey = np.linspace(0, high, 63).reshape(9, 7).astype(np.uint16)
    path = str(tmp_path / "grey.png")
    PIL.Image.fromarray(grey).save(path)
    examined = files.examine(path)
    assert examined.remarks == files.DARK * dark
    # A thumbnail shows what the network saw.
    small = np.asarray(files.small(path, 96).convert("RGB"))
    np.testing.assert_array_equal(small, examined.pixels)
    np.testing.assert_array_equal(small[..., 0], grey >> 8)
