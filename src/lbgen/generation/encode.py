"""Pixels to the bytes of an image file."""

from io import BytesIO

import numpy as np
from PIL import Image

from lbgen.dataset import Row
from lbgen.generation.config import GenerateConfig

OPTIONS = {
    "png": lambda quality: {},
    "jpeg": lambda quality: {"quality": quality, "subsampling": 0},  # colours at full resolution
    "webp": lambda quality: {"quality": quality},
}


def encode(pixels: np.ndarray, row: Row, config: GenerateConfig, adapter_sha256: str | None) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(
        stream, config.image_format, **OPTIONS[config.image_format](config.compression_quality)
    )
    return stream.getvalue()
