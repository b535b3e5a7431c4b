"""Decoding, cropping and resizing against Pillow."""

import io
import math
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import tensorflow as tf

from simmatch_tf.data import decoding

ORIENTATIONS = range(1, 9)


def noise(height, width, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, [height, width, channels]).astype(np.uint8)


def photo(height=61, width=83):
    """Smooth, with some noise."""
    small = PIL.Image.fromarray(noise(7, 9))
    x = np.asarray(small.resize((width, height), PIL.Image.Resampling.BICUBIC))
    x = x.astype(int) + noise(height, width, seed=1) // 8
    return np.clip(x, 0, 255).astype(np.uint8)


def save(image, kind, **options):
    if isinstance(image, np.ndarray):
        image = PIL.Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(image, orientation=1, **options):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return save(image, "JPEG", exif=exif, **options)


def opened(encoded):
    image = PIL.Image.open(io.BytesIO(encoded))
    return np.asarray(PIL.ImageOps.exif_transpose(image).convert("RGB"))


def bicubic(image, size, mode):
    """Pillow's, in "F" (float32) or "L" (8 bits), across and then down.

    Which comes first matters in 8 bits, and is not the same for tall images
    in all versions of Pillow.
    """
    (height, width), kernel = size, PIL.Image.Resampling.BICUBIC
    planes = [
        PIL.Image.fromarray(plane)
        .convert(mode)
        .resize((width, len(image)), kernel)
        .resize((width, height), kernel)
        for plane in np.moveaxis(image, -1, 0)
    ]
    return np.stack(planes, axis=-1)


def pillow_resize(image, size, box=None):
    flat = image[..., 0] if image.shape[-1] == 1 else image
    pil = PIL.Image.fromarray(flat)
    if box is not None:
        top, left, height, width = box
        pil = pil.crop((left, top, left + width, top + height))
    pil = pil.resize(size[::-1], PIL.Image.Resampling.BILINEAR)
    return np.asarray(pil).reshape([*size, image.shape[-1]])


def off(pixels, wanted):
    assert pixels.dtype == np.uint8 and pixels.shape == wanted.shape
    return np.abs(np.asarray(pixels).astype(int) - wanted).max()


def png_of_16_bits(x):
    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    height, width, channels = x.shape
    header = struct.pack(
        ">IIBBBBB", width, height, 16, {1: 0, 3: 2}[channels], 0, 0, 0
    )
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in x)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def files():
    image = PIL.Image.fromarray(photo())
    alpha = np.concatenate([photo(), noise(61, 83, 1)], axis=-1)
    palette, grey = image.quantize(20), image.convert("L")
    second = PIL.Image.fromarray(noise(61, 83)).quantize(30)
    wide = np.random.default_rng(0).integers(0, 2**16, [5, 7, 3])
    return {
        "jpeg": save(image, "JPEG", quality=95),
        "jpeg 4:4:4": save(image, "JPEG", subsampling=0),
        "jpeg 4:2:2": save(image, "JPEG", subsampling=1),
        "progressive": save(image, "JPEG", progressive=True),
        "grey jpeg": save(grey, "JPEG"),
        "rgb jpeg": save(image, "JPEG", keep_rgb=True),
        "tiny jpeg": save(image.resize((1, 1)), "JPEG"),
        "png": save(image, "PNG"),
        "grey png": save(grey, "PNG"),
        "palette png": save(palette, "PNG"),
        "transparent png": save(palette, "PNG", transparency=3),
        "alpha png": save(alpha, "PNG"),
        "grey alpha png": save(grey.convert("LA"), "PNG"),
        "bilevel png": save(image.convert("1"), "PNG"),
        "16 bit png": png_of_16_bits(wide),
        "gif": save(palette, "GIF"),
        "animated gif": save(
            palette, "GIF", save_all=True, append_images=[second], duration=9
        ),
        "bmp": save(image, "BMP"),
        "grey bmp": save(grey, "BMP"),
        "palette bmp": save(palette, "BMP"),
        "alpha bmp": save(alpha, "BMP"),
        "webp": save(image, "WEBP", lossless=True),
    }


@pytest.mark.parametrize("name", files())
def test_decoding_equals_pillow(name):
    encoded = files()[name]
    wanted = opened(encoded)
    decoded = decoding.decode(encoded, tf.constant(1)).numpy()
    assert off(decoded, wanted) == 0
    size = decoding.image_size(encoded, tf.constant(1))
    assert size.dtype == tf.int32
    np.testing.assert_array_equal(size, wanted.shape[:2])


def test_cmyk_is_near_pillow():
    encoded = save(PIL.Image.fromarray(photo()).convert("CMYK"), "JPEG")
    decoded = decoding.decode(encoded, tf.constant(1)).numpy()
    assert off(decoded, opened(encoded)) <= 3


def test_of_16_bit_grey_the_upper_8_are_kept():
    wide = np.random.default_rng(0).integers(0, 2**16, [5, 7, 1])
    decoded = decoding.decode(png_of_16_bits(wide), tf.constant(1))
    np.testing.assert_array_equal(decoded, (wide >> 8).repeat(3, axis=-1))


def test_what_is_no_image_is_refused():
    for function in (decoding.decode, decoding.image_size):
        with pytest.raises(tf.errors.InvalidArgumentError):
            function(b"no image", tf.constant(1))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientation(orientation):
    encoded = jpeg(photo(), orientation)
    wanted = opened(encoded)
    number = tf.constant(orientation)
    assert off(decoding.decode(encoded, number).numpy(), wanted) == 0
    size = decoding.image_size(encoded, number)
    np.testing.assert_array_equal(size, wanted.shape[:2])


@pytest.mark.parametrize("orientation", [0, 9, -1])
def test_an_orientation_that_is_none_is_the_first(orientation):
    encoded, number = jpeg(photo()), tf.constant(orientation)
    decoded = decoding.decode(encoded, number).numpy()
    assert off(decoded, opened(encoded)) == 0
    size = decoding.image_size(encoded, number)
    np.testing.assert_array_equal(size, [61, 83])
    whole = tf.constant([[0, 0, 61, 83]])
    (crop,) = decoding.resized_crops(encoded, number, whole, 32)
    wanted = decoding.resize(tf.constant(opened(encoded)), (32, 32))
    np.testing.assert_array_equal(crop, wanted)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("source", "size"),
    [
        ((61, 83), (32, 32)),
        ((61, 83), (17, 45)),
        ((61, 83), (224, 224)),
        ((61, 83), (61, 83)),
        ((61, 83), (9, 300)),
        ((61, 83), (1, 1)),
        ((1, 1), (8, 5)),
        ((1, 40), (13, 7)),
        ((3, 2), (64, 64)),
        ((500, 375), (224, 224)),
        ((700, 11), (33, 33)),
    ],
)
def test_resizing_is_within_one_level_of_pillow(source, size, channels):
    for x in (noise(*source, channels), photo(*source)[..., :channels]):
        resized = decoding.resize(tf.constant(x), size)
        assert off(resized.numpy(), pillow_resize(x, size)) <= 1


def test_resizing_keeps_constants():
    for level in (0, 1, 254, 255):
        x = np.full([37, 53, 3], level, np.uint8)
        for size in ((16, 16), (100, 100), (37, 53)):
            resized = decoding.resize(tf.constant(x), size)
            assert (resized.numpy() == level).all()


@pytest.mark.parametrize(
    ("height", "width"), [(61, 83), (83, 60), (40, 40), (20, 400), (401, 33)]
)
@pytest.mark.parametrize(("resize", "side"), [(36, 32), (32, 32), (100, 51)])
def test_fit_is_torchvisions_resize_and_centre_crop(
    height, width, resize, side
):
    x = photo(height, width)
    short, long = sorted((height, width))
    long = int(resize * long / short)
    size = (resize, long) if height <= width else (long, resize)
    top, left = (int(round((length - side) / 2.0)) for length in size)
    wanted = pillow_resize(x, size)[top : top + side, left : left + side]
    fitted = decoding.fit(tf.constant(x), resize=resize, side=side)
    assert off(fitted.numpy(), wanted) <= 1


def edges(height, width, period):
    """Black and white, in squares of `period`."""
    squares = np.indices([height, width]).sum(axis=0) // period % 2
    return (255 * squares[..., None]).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width"), [(61, 83), (83, 60), (40, 40), (20, 400), (401, 33)]
)
@pytest.mark.parametrize(
    ("resize", "side"), [(36, 32), (32, 32), (9, 7), (100, 51), (224, 224)]
)
def test_bicubic_fit_is_pillows(height, width, resize, side, channels):
    short = min(height, width)
    size = resize * height // short, resize * width // short
    top, left = (int(round((length - side) / 2.0)) for length in size)

    def check(x):
        exact, wanted = (
            bicubic(x, size, mode)[top : top + side, left : left + side]
            for mode in ("F", "L")
        )
        fitted = decoding.fit(
            tf.constant(x), resize=resize, side=side, kernel="keyscubic"
        ).numpy()
        assert off(fitted, wanted) <= 1
        return exact

    check(photo(height, width)[..., :channels])
    check(noise(height, width, channels))
    # What overshoots is clipped, not wrapped around.
    exact = check(edges(height, width, 7).repeat(channels, axis=-1))
    assert resize < short or (exact.min() < -5 and exact.max() > 260)


def test_bicubic_fit_of_its_own_size_changes_nothing():
    x = noise(40, 40)
    fitted = decoding.fit(
        tf.constant(x), resize=40, side=40, kernel="keyscubic"
    )
    np.testing.assert_array_equal(fitted, x)


def random_boxes(size, count, seed):
    rng = np.random.default_rng(seed)
    draws = rng.random([count, decoding.BOX_DRAWS], np.float32)
    return decoding.crop_box(draws, size, scale=(0.02, 1.0))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_crops_equal_those_of_the_whole(orientation, progressive, subsampling):
    encoded = jpeg(
        photo(), orientation, progressive=progressive, subsampling=subsampling
    )
    number = tf.constant(orientation)
    whole = decoding.decode(encoded, number)
    size = tf.shape(whole)[:2]
    for seed in range(12):
        boxes = random_boxes(size, 1 + seed % 3, seed)
        known = size if seed % 2 else None
        crops = decoding.resized_crops(encoded, number, boxes, 24, size=known)
        assert len(crops) == len(boxes)
        for crop, box in zip(crops, boxes, strict=True):
            wanted = decoding.resized_crop(whole, box, 24)
            np.testing.assert_array_equal(crop, wanted)
            pillow = pillow_resize(opened(encoded), (24, 24), box.numpy())
            assert off(crop.numpy(), pillow) <= 1


@pytest.mark.parametrize("place", ["top left", "bottom right", "pixel"])
def test_crops_at_the_edges(place):
    encoded = jpeg(photo(), subsampling=2)
    box = {
        "top left": [0, 0, 16, 16],
        "bottom right": [45, 67, 16, 16],
        "pixel": [60, 16, 1, 1],
    }[place]
    (crop,) = decoding.resized_crops(
        encoded, tf.constant(1), tf.constant([box]), 20
    )
    whole = decoding.decode(encoded, tf.constant(1))
    wanted = decoding.resized_crop(whole, tf.constant(box), 20)
    np.testing.assert_array_equal(crop, wanted)


@pytest.mark.parametrize("name", ["alpha png", "animated gif", "palette bmp"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_crops_of_other_files(name, orientation):
    encoded, number = files()[name], tf.constant(orientation)
    whole = decoding.decode(encoded, number)
    boxes = random_boxes(tf.shape(whole)[:2], 2, 0)
    crops = decoding.resized_crops(encoded, number, boxes, 24)
    for crop, box in zip(crops, boxes, strict=True):
        np.testing.assert_array_equal(
            crop, decoding.resized_crop(whole, box, 24)
        )


def test_a_crop_of_one_channel():
    x = noise(30, 40, 1)
    box = [3, 5, 20, 30]
    crop = decoding.resized_crop(tf.constant(x), tf.constant(box), 16)
    assert off(crop.numpy(), pillow_resize(x, (16, 16), box)) <= 1


def torchvision_box(draws, height, width, scale, ratio):
    """RandomResizedCrop.get_params in float64, from the same draws."""
    tries = draws[:20].astype(np.float64).reshape(10, 2)
    for area, aspect in tries:
        area = height * width * (scale[0] + area * (scale[1] - scale[0]))
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + aspect * (high - low))
        w = int(round(math.sqrt(area * aspect)))
        h = int(round(math.sqrt(area / aspect)))
        if 0 < w <= width and 0 < h <= height:
            top = math.floor(draws[20] * (height - h + 1))
            left = math.floor(draws[21] * (width - w + 1))
            return [top, left, h, w]
    h, w = height, width
    if width / height < ratio[0]:
        h = int(round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = int(round(height * ratio[1]))
    return [(height - h) // 2, (width - w) // 2, h, w]


@pytest.mark.parametrize(
    ("height", "width"),
    [(375, 500), (500, 375), (32, 32), (20, 400), (401, 33), (1, 1), (3, 1)],
)
@pytest.mark.parametrize("low", [0.08, 0.2, 1.0])
def test_boxes_are_torchvisions(height, width, low):
    draws = np.random.default_rng(0).random([300, 22], np.float32)
    boxes = decoding.crop_box(draws, [height, width], scale=(low, 1.0)).numpy()
    assert boxes.dtype == np.int32
    wanted = [
        torchvision_box(d, height, width, (low, 1.0), (3 / 4, 4 / 3))
        for d in draws
    ]
    # float32 may round the other way.
    differ = (boxes != wanted).any(axis=1)
    assert differ.mean() < 0.01
    top, left, h, w = boxes.T
    assert (np.minimum(top, left) >= 0).all() and (np.minimum(h, w) > 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()


def test_boxes_have_the_area_ratio_and_place_asked_for():
    draws = np.random.default_rng(0).random([20000, 22], np.float32)
    boxes = decoding.crop_box(
        draws, [1000, 1000], scale=(0.2, 0.5), ratio=(0.5, 2.0)
    )
    top, left, height, width = boxes.numpy().T.astype(float)
    area, ratio = height * width / 1e6, width / height
    assert 0.199 < area.min() < 0.205 and 0.49 < area.max() < 0.501
    assert 0.499 < ratio.min() < 0.51 and 1.97 < ratio.max() < 2.005
    assert abs(area.mean() - 0.35) < 0.003
    assert abs(np.log(ratio).mean()) < 0.01
    places = np.stack([top / (1001 - height), left / (1001 - width)])
    for place in places:
        counts = np.histogram(place, 20, (0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 43.9  # chi², 19 degrees
    assert abs(np.corrcoef(places)[0, 1]) < 0.03


def test_one_box_is_that_of_a_batch():
    draws = np.random.default_rng(0).random([4, 2, 22], np.float32)
    whole = decoding.crop_box(draws, [375, 500], scale=(0.2, 1.0))
    assert whole.shape == [4, 2, 4]
    one = decoding.crop_box(draws[2, 1], [375, 500], scale=(0.2, 1.0))
    np.testing.assert_array_equal(one, whole[2, 1])


def test_the_largest_draws_stay_within_the_image():
    draws = np.full([22], np.nextafter(np.float32(1), 0))
    for size in ([375, 500], [3, 5], [6000, 4000]):
        box = decoding.crop_box(draws, size, scale=(0.2, 0.5)).numpy()
        assert (box[:2] + box[2:] == size).all()


@pytest.mark.parametrize("calls", [None, 1, 4])
def test_the_same_in_tf_data_and_alone(calls):
    encoded = [jpeg(photo(40 + n, 70 - n), 1 + n) for n in range(8)]
    encoded.append(files()["palette png"])
    numbers = np.int32([*ORIENTATIONS, 1])
    draws = np.random.default_rng(0).random([9, 2, 22], np.float32)

    def views(element):
        image, orientation, numbers = element
        size = decoding.image_size(image, orientation)
        boxes = decoding.crop_box(numbers, size, scale=(0.2, 1.0))
        whole = decoding.decode(image, orientation)
        whole = decoding.fit(whole, resize=30, side=24)
        crops = decoding.resized_crops(image, orientation, boxes, 24)
        return tf.stack([*crops, whole])

    def batch(*elements):
        return tf.map_fn(
            views,
            elements,
            fn_output_signature=tf.TensorSpec([3, 24, 24, 3], tf.uint8),
        )

    dataset = tf.data.Dataset.from_tensor_slices((encoded, numbers, draws))
    dataset = dataset.batch(3)
    dataset = dataset.map(batch, num_parallel_calls=calls)
    results = np.concatenate(list(dataset.as_numpy_iterator()))
    for element, crops in zip(
        zip(encoded, numbers, draws, strict=True), results, strict=True
    ):
        element = [tf.constant(e) for e in element]
        np.testing.assert_array_equal(views(element), crops)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_grey_of_a_jpeg_is_its_luma(mode):
    size = (30, 20) if mode == "L" else (30, 20, 3)
    image = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "JPEG")
    with PIL.Image.open(file) as opened:
        opened.draft("L", opened.size)
        luma = np.asarray(opened)
    for turn, wanted in ((1, luma), (6, np.rot90(luma, -1))):
        decoded = decoding.decode(
            tf.constant(file.getvalue()), tf.constant(turn), channels=1
        )
        np.testing.assert_array_equal(decoded[..., 0], wanted)


def test_grey_of_a_batch_is_pillows():
    batch = noise(6 * 30, 40).reshape(6, 30, 40, 3)
    wanted = [np.asarray(PIL.Image.fromarray(x).convert("L")) for x in batch]
    grey = decoding.grey(tf.constant(batch))
    assert grey.dtype == tf.uint8 and grey.shape == [6, 30, 40, 1]
    np.testing.assert_array_equal(grey[..., 0], wanted)
