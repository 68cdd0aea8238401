"""Decoding image files to upright RGB pictures in bounded memory.

Decoded pixels take far more memory than the file: a PNG of 1 MB can hold 169 million pixels. Pictures with more than
LARGE pixels are shrunk during decoding or tile by tile afterwards, and all threads together use at most BYTES_HELD.
"""

import io
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

Result = TypeVar("Result")

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Formats that Pillow may open. It decodes these itself; for some others, such as EPS, it starts external programs."""
NOT_IMAGES = (
    (b"version https://git-lfs", "it is a Git LFS pointer; run git lfs pull"),
    (b"<", "it is HTML, XML or SVG"),
)
"""(first bytes, what the file is) of files that are often found instead of an image."""

FLAT_SPREAD = 2
"""A picture is flat if its largest and smallest 8-bit value differ by at most this in every channel."""
MOST_PIXELS = 178_956_970
"""Pillow's own limit, above which it reports a decompression bomb."""
LARGE = 2**25
"""Number of pixels (33 million) from which a picture is shrunk before conversion; smaller ones are converted whole."""
DECODER_BYTES = {"WEBP": 16, "AVIF": 12, "JPEG2000": 24}
"""Peak memory per pixel while a format is decoded, measured with Pillow 13; 4 for all others."""
PROGRESSIVE_BYTES = 6
"""Peak memory per stored pixel of a progressive JPEG; all its coefficients are kept, even if it is shrunk."""
CONVERSION_BYTES = 16
"""Peak memory per pixel of the copies made when a whole picture is converted."""
BYTES_HELD = 3 * 2**29
"""Limit on the estimated memory of all pictures being decoded at one time, and so also of a single picture."""
OVERSAMPLING = 4
"""Large pictures are shrunk to at least this many times the requested side."""
TILE = 2048
"""Side in pixels of the tiles in which a large picture is converted."""


class Square(NamedTuple):
    """The centred square of an image file, and properties of the file."""

    picture: Image.Image
    """RGB, or greyscale for a mask; upright."""
    size: tuple[int, int]
    """Width and height of the whole picture, as stored."""
    format: str
    quantization: dict[int, list[int]]
    """Quantization tables of a JPEG; empty for other formats."""
    is_flat: bool
    """Whether the whole picture has one colour."""


def centre_of(content: bytes, side: int, resampling: Image.Resampling, enlarge: bool = True) -> Square | str:
    """The centred square in RGB, resized to `side`, or the reason why it cannot be decoded.

    enlarge: whether a picture smaller than `side` is enlarged to it.
    """

    def use(image: Image.Image, size: tuple[int, int]) -> Square:
        if image.width * image.height > LARGE:
            rgb, is_flat = _shrunk(image, side, _centre(image.size)), _extrema_are_close(_tiles(image))
        else:
            rgb = to_rgb(image)
            is_flat = _extrema_are_close([rgb])
        target = side if enlarge else min(side, *rgb.size)
        quantization = getattr(image, "quantization", None) or {}
        return Square(centre_square(rgb, target, resampling), size, str(image.format), quantization, is_flat)

    return _decoded(content, side, use)


def picture_of(content: bytes, side: int) -> Image.Image | str:
    """The whole picture in RGB, or the reason why it cannot be decoded.

    side: the side at which it will be used; a large picture is shrunk to at least OVERSAMPLING times that.
    """

    def use(image: Image.Image, size: tuple[int, int]) -> Image.Image:
        if image.width * image.height > LARGE:
            return _shrunk(image, side, (0, 0, *image.size))
        ImageOps.exif_transpose(image, in_place=True)  # makes no copy if the picture is already upright
        return image if image.mode == "RGB" and not image.has_transparency_data else _without_alpha(image)

    return _decoded(content, side, use)


def mask_of(content: bytes, side: int) -> Image.Image | str:
    """The centred square of a greyscale mask, resized to `side` without interpolation, or why it cannot be decoded."""

    def use(image: Image.Image, size: tuple[int, int]) -> Image.Image:
        if image.width * image.height > LARGE:
            return _turned_like(image, centre_square(image, side, Image.Resampling.NEAREST)).convert("L")
        return centre_square(upright(image).convert("L"), side, Image.Resampling.NEAREST)

    return _decoded(content, side, use, shrink=False)


def is_image(path: Path) -> bool:
    """Whether a path is a regular file whose content is an image in one of the FORMATS."""
    try:
        if not path.is_file() or not path.stat().st_size:  # an empty file may be a pipe, see runs.atomic.read_bounded
            return False
        with Image.open(path, formats=FORMATS):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # Pillow may raise anything for a file that is not an image
        return False


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB, upright; transparent areas become white, and 16-bit greys are scaled to 8 bits."""
    return _without_alpha(upright(image))


def _without_alpha(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = Image.fromarray((np.array(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    picture = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """The image rotated and flipped according to its EXIF orientation."""
    _exif(image)
    return ImageOps.exif_transpose(image)


def _exif(image: Image.Image) -> Image.Exif:
    try:
        return image.getexif()
    except Exception as error:
        raise ValueError(f"damaged EXIF block: {error}") from error


def centre_square(image: Image.Image, side: int, resampling: Image.Resampling) -> Image.Image:
    """The largest centred square, resized to `side`; cropped first, because a resized long strip would be large."""
    return image.resize((side, side), resampling, box=_centre(image.size))


def _centre(size: tuple[int, int]) -> tuple[float, float, float, float]:
    short = min(size)
    left, top = ((length - short) / 2 for length in size)
    return left, top, left + short, top + short


# ---- opening ----


class Budget:
    """A memory budget in bytes that threads share."""

    def __init__(self, total: int) -> None:
        self.free, self.changed = total, threading.Condition()

    @contextmanager
    def reserved(self, amount: int) -> Iterator[None]:
        """Wait until `amount` bytes are free, and reserve them within the context."""
        with self.changed:
            self.changed.wait_for(lambda: self.free >= amount)
            self.free -= amount
        try:
            yield
        finally:
            with self.changed:
                self.free += amount
                self.changed.notify_all()


HELD = Budget(BYTES_HELD)


def _decoded(
    content: bytes, side: int, use: Callable[[Image.Image, tuple[int, int]], Result], shrink: bool = True
) -> Result | str:
    """The result of `use` on the decoded image and its stored size, or the reason why the image cannot be decoded.

    Pillow's readers raise exceptions of any type on damaged or malicious files, hence the last clause.
    """
    if not content:
        return "empty file"
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        if too_large := _too_large(image):
            return too_large
        stored, pixels = image.size, image.width * image.height
        coefficients = pixels * PROGRESSIVE_BYTES if image.info.get("progressive") else 0
        if shrink and pixels > LARGE and image.format == "JPEG":
            image.draft(None, (OVERSAMPLING * side, OVERSAMPLING * side))
        with HELD.reserved(min(_bytes_needed(image) + coefficients, BYTES_HELD)):
            image.load()
            return use(image, stored if image.width * image.height < pixels else image.size)
    except UnidentifiedImageError:
        return _why_unidentified(content)
    except Image.DecompressionBombError:
        return f"it has more than {MOST_PIXELS:,} pixels"
    except Exception as error:
        return _text(error)


def _too_large(image: Image.Image) -> str:
    """Why an image cannot be decoded within BYTES_HELD; empty if it can."""
    pixels = image.width * image.height
    if pixels <= MOST_PIXELS and _bytes_needed(image) <= BYTES_HELD:
        return ""
    most = min(MOST_PIXELS, BYTES_HELD // DECODER_BYTES.get(str(image.format), 4))
    return f"it has {image.width:,} x {image.height:,} pixels, more than the {most:,} that are read"


def _bytes_needed(image: Image.Image) -> int:
    pixels = image.width * image.height
    return pixels * (DECODER_BYTES.get(str(image.format), 4) + (CONVERSION_BYTES if pixels <= LARGE else 0))


def _why_unidentified(content: bytes) -> str:
    """The error of the reader whose format matches the first bytes; Pillow itself hides it."""
    for name in FORMATS:
        factory, accepts = Image.OPEN[name]
        if name != "PPM" and accepts and accepts(content[:16]) is True:  # a P and a digit begin many texts
            try:
                factory(io.BytesIO(content), "")
            except Exception as error:
                return f"damaged {name} file: {_text(error)}"
    return next((what for start, what in NOT_IMAGES if content.lstrip().startswith(start)), "its format is not known")


def _text(error: Exception) -> str:
    text = " ".join(str(error).split())[:100]
    return text if text and not isinstance(error, LookupError) else f"{type(error).__name__} {text}".rstrip()


# ---- large pictures ----


def _shrunk(image: Image.Image, side: int, box: tuple[float, float, float, float]) -> Image.Image:
    """A part of a large picture, RGB and upright, shrunk to OVERSAMPLING times `side` or more."""
    left, top, right, bottom = map(int, box)
    factor = max(1, min(image.size) // (OVERSAMPLING * side))
    width, height = (right - left) // factor, (bottom - top) // factor
    small = Image.new("RGB", (width, height))
    step = max(1, TILE // factor)
    for x in range(0, width, step):
        for y in range(0, height, step):
            start = (left + x * factor, top + y * factor)
            end = (min(left + (x + step) * factor, right), min(top + (y + step) * factor, bottom))
            small.paste(_tile(image, (*start, *end)).reduce(factor), (x, y))
    return _turned_like(image, small)


def _tiles(image: Image.Image) -> Iterator[Image.Image]:
    """The whole picture, tile by tile."""
    for x in range(0, image.width, TILE):
        for y in range(0, image.height, TILE):
            yield _tile(image, (x, y, min(x + TILE, image.width), min(y + TILE, image.height)))


def _tile(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """A tile of the stored picture in RGB, not rotated."""
    return _without_alpha(image.crop(box))


def _extrema_are_close(pieces: Iterable[Image.Image]) -> bool:
    """Whether all values in the pieces of one RGB picture lie within FLAT_SPREAD of each other in every channel."""
    low, high = np.full(3, 255), np.zeros(3, int)
    for piece in pieces:
        extrema = np.array(piece.getextrema())  # (3, 2)
        low, high = np.minimum(low, extrema[:, 0]), np.maximum(high, extrema[:, 1])
        if (high - low).max() > FLAT_SPREAD:
            return False
    return True


def _turned_like(image: Image.Image, part: Image.Image) -> Image.Image:
    """A part of the stored picture, rotated and flipped according to the EXIF orientation of `image`."""
    part.getexif()[ExifTags.Base.Orientation] = _exif(image).get(ExifTags.Base.Orientation, 1)
    return upright(part)
