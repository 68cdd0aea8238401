"""From the bytes of an image file to a picture as a viewer shows it."""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Formats that Pillow may open. It decodes these itself; for others, such as EPS, it starts other programs."""


def open_image(content: bytes) -> Image.Image | str:
    """The decoded image, or the reason why it cannot be decoded."""
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        image.load()
        return image
    except UnidentifiedImageError:
        return "its format is not known"
    except (Image.DecompressionBombError, OSError, ValueError, SyntaxError, NotImplementedError) as error:
        return " ".join(str(error).split())[:100]


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB with 8 bits, upright, transparent areas on white, 16-bit greys scaled to 8 bits."""
    image = upright(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.array(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    picture = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """Rotated and flipped as the EXIF orientation says."""
    return ImageOps.exif_transpose(image)


def centre_square(image: Image.Image, side: int, resampling: Image.Resampling) -> Image.Image:
    """The largest centred square, resized to `side`; cropped first, as a long strip resized whole would be large."""
    short = min(image.size)
    left, top = ((length - short) / 2 for length in image.size)
    return image.resize((side, side), resampling, box=(left, top, left + short, top + short))
