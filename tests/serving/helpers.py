"""Images and calls that several tests of serving share."""

import io

import numpy as np
import PIL.Image

from simmatch_tf import predict
from simmatch_tf.data.sources import digits

SIGNATURES = {"serving_default", "classify_bytes", "embed", "explain"}
TEST = digits.load(8).test


def png(pixels):
    """Encodes uint8 [H, W, 1 or 3]."""
    if pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def photograph(size=(30, 20), *, turned=True):
    """An image that lies on its side, or the same one as viewers show it."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, [3, 4, 3], np.uint8)
    image = PIL.Image.fromarray(small).resize(size)
    file = io.BytesIO()
    exif = image.getexif()
    if turned:
        exif[0x0112] = 6
        image = image.transpose(PIL.Image.Transpose.ROTATE_90)
    # Lossless, so that both have the same pixels.
    image.save(file, "PNG", exif=exif)
    return file.getvalue()


def run_predict(model, images, output, **flags):
    """Runs the command."""
    config = predict.PredictConfig(
        model=str(model),
        images=str(images),
        output=str(output),
        **{"batch_size": 16, **flags},
    )
    return predict.main(config)
