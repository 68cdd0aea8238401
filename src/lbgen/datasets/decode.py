"""From an image file to a picture, as a viewer shows it."""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

READ = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Formats that Pillow may open: it decodes these itself, and hands others to programs of this machine (EPS)."""


def opened(content: bytes) -> Image.Image | str:
    """The whole image, or why there is none."""
    try:
        image = Image.open(io.BytesIO(content), formats=READ)
        image.load()
        return image
    except UnidentifiedImageError:
        return "of no format that is known"
    except (Image.DecompressionBombError, OSError, ValueError, SyntaxError, NotImplementedError) as error:
        return " ".join(str(error).split())[:100]


def as_seen(image: Image.Image) -> Image.Image:
    """In RGB as a viewer shows it: upright, the transparent on white, 16 bits brought to 8."""
    image = upright(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.array(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    picture = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF data say."""
    return ImageOps.exif_transpose(image)


def square(image: Image.Image, side: int, resampling: Image.Resampling) -> Image.Image:
    """The middle square, cut before it is resized: of a long strip, the whole would be large."""
    short = min(image.size)
    left, top = ((length - short) / 2 for length in image.size)
    return image.resize((side, side), resampling, box=(left, top, left + short, top + short))
