"""Image files that carry what made them, read back by Pillow, by exiftool and by their raw bytes."""

import json
import shutil
import struct
import subprocess
import sys
from dataclasses import asdict
from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import ExifTags, Image

from lbgen.generation.workers.encode import DIGITAL_SOURCE_TYPE, ImageMetadata, encode

FORMATS = ("png", "jpeg", "webp")
PROMPTS = (
    "a plain fox",
    "\"quoted\" and 'quoted' & <b>bold</b> ]]> --> {0} %s \\",
    "🦊 قطّة \u202eabc\u202c 狐 e\u0301",
    "a non-character \uffff",
    " two  spaces, and " + "long " * 400,
)
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
DC = "{http://purl.org/dc/elements/1.1/}"


def metadata(prompt=PROMPTS[0]):
    return ImageMetadata("sd15", "ab" * 32, prompt, 2**63 - 1, "fox", prompt, 7, "train", 2)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def chunks(content):
    """(name, payload) of each part of a PNG, JPEG or WebP file's header, as their specifications lay them out."""
    if content.startswith(b"\x89PNG"):
        start = 8
        while start < len(content):
            length, name = struct.unpack_from(">I4s", content, start)
            yield name.decode(), content[start + 8 : start + 8 + length]
            start += length + 12
    elif content.startswith(b"RIFF"):
        start = 12
        while start < len(content):
            name, length = struct.unpack_from("<4sI", content, start)
            yield name.decode(), content[start + 8 : start + 8 + length]
            start += 8 + length + length % 2
    else:
        start = 2
        while content[start + 1] != 0xDA:  # start of scan: the pixels
            marker, length = struct.unpack_from(">xBH", content, start)
            yield f"{marker:02x}", content[start + 4 : start + 2 + length]
            start += length + 2


def xmp_of(content):
    """The XMP packet's bytes, found where each format's specification puts it."""
    (packet,) = [
        payload.partition(b"\0\0\0\0\0" if name == "iTXt" else b"xap/1.0/\0")[2] or payload
        for name, payload in chunks(content)
        if (name, payload[:17]) == ("iTXt", b"XML:com.adobe.xmp")
        or (name == "e1" and payload.startswith(b"http://ns.adobe.com/xap/1.0/\0"))
        or name == "XMP "
    ]
    return packet


def description_of(content):
    """By Pillow."""
    with Image.open(BytesIO(content)) as image:
        return image.text["Description"] if image.format == "PNG" else image.getexif()[ExifTags.Base.ImageDescription]


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_facts_are_read_back_by_pillow_and_from_the_raw_bytes(pixels, image_format, prompt):
    content = encode(pixels, metadata(prompt), image_format, 95)
    assert json.loads(description_of(content)) == asdict(metadata(prompt)) | {"synthetic": True}
    tree = ElementTree.fromstring(xmp_of(content))
    assert tree.find(f".//{IPTC}DigitalSourceType").text == DIGITAL_SOURCE_TYPE
    assert tree.find(f".//{IPTC}AIPromptInformation").text == prompt.replace("\uffff", "\ufffd")
    assert json.loads("".join(tree.find(f".//{DC}description").itertext())) == asdict(metadata(prompt))


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool (libimage-exiftool-perl) is not installed")
def test_exiftool_reads_the_source_type_and_the_description(pixels, tmp_path):
    for image_format in FORMATS:
        (tmp_path / f"image.{image_format}").write_bytes(encode(pixels, metadata(PROMPTS[2]), image_format, 95))
    command = ["exiftool", "-json", "-n", "-G1", "-charset", "utf8", str(tmp_path)]
    tags = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert len(tags) == len(FORMATS)
    for image in tags:
        assert image["XMP-iptcExt:DigitalSourceType"] == DIGITAL_SOURCE_TYPE
        assert image["XMP-xmp:CreatorTool"] == "lbgen"
        plain = image.get("PNG:Description") or image["IFD0:ImageDescription"]
        assert json.loads(plain) == asdict(metadata(PROMPTS[2])) == json.loads(image["XMP-dc:Description"])
        assert not [name for name in image if "Warning" in name or "Error" in name]


def test_png_keeps_the_pixels_and_lossy_formats_come_close(pixels):
    smooth = np.asarray(Image.fromarray(pixels[:4, :4]).resize((32, 24), Image.Resampling.BICUBIC))
    for image_format, allowed in (("png", 0), ("jpeg", 4), ("webp", 6)):
        read = np.asarray(Image.open(BytesIO(encode(smooth, metadata(), image_format, 95))))
        assert read.shape == smooth.shape
        assert np.abs(read.astype(int) - smooth).mean() <= allowed


def test_jpeg_keeps_colours_at_full_resolution(pixels):
    """By the sampling factors in the frame header (ITU T.81, B.2.2): 1x1 for each of the three components."""
    (frame,) = [payload for name, payload in chunks(encode(pixels, metadata(), "jpeg", 95)) if name == "c0"]
    assert [frame[6 + 3 * component + 1] for component in range(3)] == [0x11] * 3


@pytest.mark.parametrize("image_format", FORMATS)
def test_stored_size_is_height_then_width(pixels, image_format):
    content = encode(pixels, metadata(), image_format, 95, stored_size=(10, 20))
    assert Image.open(BytesIO(content)).size == (20, 10)


@pytest.mark.parametrize("image_format", FORMATS)
def test_other_processes_make_the_same_bytes_without_torch(pixels, image_format, tmp_path):
    np.save(tmp_path / "pixels.npy", pixels)
    program = f"""
import sys
import numpy as np
from lbgen.generation.workers.encode import ImageMetadata, encode
pixels = np.load({str(tmp_path / "pixels.npy")!r})
sys.stdout.buffer.write(encode(pixels, {metadata(PROMPTS[2])!r}, {image_format!r}, 90, (12, 16)))
assert "torch" not in sys.modules
"""
    written = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    assert written == encode(pixels, metadata(PROMPTS[2]), image_format, 90, (12, 16))
