"""Decoding files that are damaged, odd or large: a reason instead of an exception, and bounded memory."""

import io
import random
import struct
import subprocess
import sys
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from lbgen.audit import views
from lbgen.datasets import decode
from lbgen.report.thumbnails import webp_uri

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3)).astype(np.uint8))
NOT_TIFF = b"Exif\0\0no TIFF header here"


def saved(image: Image.Image, format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "empty file"),
        (saved(PICTURE, exif=NOT_TIFF), "damaged EXIF block: not a TIFF file"),
        (saved(PICTURE, "WEBP", exif=NOT_TIFF), "damaged EXIF block: not a TIFF file"),
        (saved(PICTURE, "AVIF")[:200], "damaged AVIF file"),
        (saved(PICTURE)[:20], "Truncated"),
        (saved(PICTURE)[:200], "truncated"),
        (saved(PICTURE, "JPEG")[:30], "Truncated"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
        (b"<!doctype html><title>404</title>", "it is HTML"),
        (b"Python and others", "its format is not known"),
    ],
)
def test_a_file_that_is_no_whole_image_has_its_true_cause(content, cause):
    found = views.decode(content, None, 16)
    assert isinstance(found, str) and cause in found
    assert views.decode(saved(PICTURE), content, 16) == found.replace("cannot", "its mask cannot") or not content
    assert webp_uri(content, 16) == ""


@pytest.mark.parametrize("format", decode.FORMATS)
def test_whatever_pillow_raises_is_a_reason(format):
    """Bytes changed, cut out and cut off at random in a file of each format: 60 files, never an exception."""
    whole, rng = saved(PICTURE, format), random.Random(format)
    reasons = set()
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 3, 20))):
            content[rng.randrange(min(len(content), 400))] = rng.randrange(256)
        if rng.random() < 0.3:
            del content[rng.randrange(len(content)) :]
        found = views.decode(bytes(content), None, 16)
        reasons.add(found if isinstance(found, str) else "")
    assert len(reasons) > 1 and all(map(str.isprintable, reasons))


def claiming(width: int, height: int) -> bytes:
    """A PNG of which there is only the header."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    end = b"IDAT" + zlib.compress(b"")
    chunks = (struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each)) for each in (header, end))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(("width", "height"), [(18_000, 10_000), (65_535, 65_535)])
def test_a_picture_that_is_too_large_is_refused_with_its_size(width, height):
    found = views.decode(claiming(width, height), None, 16)
    assert f"{width:,} x {height:,}" in found or "more than 178,956,970 pixels" in found


PEAK = """
import resource, sys
from pathlib import Path
from PIL import Image
from lbgen.datasets import decode
content = Path(sys.argv[1]).read_bytes()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert decode.centre_of(content, 64, Image.Resampling.BICUBIC).size == (6000, 6000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_large_picture_takes_little_more_than_its_pixels(tmp_path):
    """36 million pixels of 4 bytes each are 144 MB; five copies of them were 720 MB."""
    image = Image.new("RGBA", (6000, 6000), (200, 10, 10, 128))
    image.paste((0, 200, 0, 255), (1000, 1000, 3000, 3000))
    image.save(tmp_path / "large.png", compress_level=1)
    shown = subprocess.run([sys.executable, "-c", PEAK, tmp_path / "large.png"], capture_output=True, check=True)
    assert int(shown.stdout) / 1000 < 350  # MB


def test_threads_hold_no_more_than_their_budget():
    """Six threads of 40 bytes each in a budget of 100: never more than two at once, and all come to an end."""
    budget, held, most = decode.Budget(100), [], []

    def work() -> None:
        with budget.reserved(40):
            held.append(1)
            most.append(len(held))
            time.sleep(0.01)
            held.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert len(most) == 6 and max(most) <= 2 and budget.free == 100


# ---- pictures that are shrunk before they are converted ----

RAMP = np.stack(np.meshgrid(np.linspace(0, 255, 300), np.linspace(0, 200, 240)), axis=-1)
SMOOTH = np.concatenate([RAMP, np.full((240, 300, 1), 90)], axis=-1).round().astype(np.uint8)


@pytest.fixture
def small_pieces(monkeypatch):
    """Every picture counts as large, and is converted in pieces of 64 pixels."""
    monkeypatch.setattr(decode, "LARGE", 100)
    monkeypatch.setattr(decode, "TILE", 64)


def centre_by_pillow(pixels: np.ndarray, side: int) -> np.ndarray:
    image, short = Image.fromarray(pixels), min(pixels.shape[:2])
    left, top = (image.width - short) // 2, (image.height - short) // 2
    square = image.crop((left, top, left + short, top + short)).resize((side, side), Image.Resampling.BOX)
    return np.asarray(square).astype(int)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16"])
def test_a_large_picture_is_the_same_picture(small_pieces, mode):
    """Against Pillow's own mean over boxes of the whole picture."""
    wanted, image = SMOOTH, Image.fromarray(SMOOTH)
    if mode == "RGBA":
        image.putalpha(Image.new("L", image.size, 128))
        wanted = (SMOOTH * (128 / 255) + 255 * (127 / 255)).round().astype(np.uint8)
    elif mode == "I;16":
        image = Image.fromarray(SMOOTH[:, :, 0].astype(np.uint16) * 257)
        wanted = SMOOTH[:, :, [0, 0, 0]]
    elif mode != "RGB":
        image = image.convert(mode)
        wanted = np.asarray(image.convert("RGB"))
    found = views.decode(saved(image), None, 12)
    assert np.exp(found.facts[:2].numpy()) == pytest.approx([300, 240])
    assert np.abs(found.canvas.permute(1, 2, 0).numpy() - centre_by_pillow(wanted, 12)).max() <= 6


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_picture_is_upright(small_pieces, format, orientation):
    """Against the whole picture, turned by numpy as the standard says (CIPA DC-008, tag 274)."""
    turned = {
        1: SMOOTH, 2: SMOOTH[:, ::-1], 3: SMOOTH[::-1, ::-1], 4: SMOOTH[::-1], 5: SMOOTH.transpose(1, 0, 2),
        6: np.rot90(SMOOTH, -1), 7: SMOOTH[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(SMOOTH),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = views.decode(saved(Image.fromarray(SMOOTH), format, exif=exif), None, 12)
    wanted = centre_by_pillow(np.ascontiguousarray(turned), 12)
    assert np.abs(found.canvas.permute(1, 2, 0).numpy() - wanted).max() <= 8


def test_a_large_jpeg_is_shrunk_while_it_is_decoded(small_pieces):
    """Its facts are those of the stored picture."""
    found = views.decode(saved(Image.fromarray(SMOOTH).resize((1200, 960)), "JPEG", quality=95), None, 12)
    assert np.exp(found.facts[:2].numpy()) == pytest.approx([1200, 960])
    assert np.abs(found.canvas.permute(1, 2, 0).numpy() - centre_by_pillow(SMOOTH, 12)).max() <= 8


def test_one_pixel_makes_a_large_picture_no_blank_one(small_pieces):
    pixels = np.full((240, 300, 3), 90, np.uint8)
    assert views.decode(saved(Image.fromarray(pixels)), None, 12).startswith("blank")
    pixels[200, 290] = 0
    assert not isinstance(views.decode(saved(Image.fromarray(pixels)), None, 12), str)


def test_a_large_mask_keeps_its_place(small_pieces):
    mask, exif = np.zeros((240, 240), np.uint8), Image.Exif()
    mask[:, :120] = 255
    exif[0x0112] = 6  # its left half is the upper half
    square = Image.fromarray(SMOOTH[:, 30:270])
    found = views.decode(saved(square), saved(Image.fromarray(mask), exif=exif), 12)
    assert found.mask[:6].all() and not found.mask[6:].any()
