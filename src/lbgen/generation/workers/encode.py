"""From pixels to an image file with metadata about its generation; imports no torch.

The metadata is in the file twice: as XMP, in the properties of the IPTC standard (2025.1) for generated images, which
search engines and photo archives read, and as one line of JSON in the file's description.
"""

import json
import re
import struct
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any, Literal, NamedTuple
from xml.sax.saxutils import escape

import numpy as np
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from lbgen.datasets.index import Row
from lbgen.runs.parsing import parse_json

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""The IPTC's term for "made by a generative model"."""

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 does not allow, even if escaped."""

UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, SyntaxError, EOFError, struct.error,
              OverflowError, Image.DecompressionBombError)  # fmt: skip
"""Exceptions for files that are damaged or of another format, and for a description that is not JSON."""

XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
   <Iptc4xmpExt:DigitalSourceType>{source_type}</Iptc4xmpExt:DigitalSourceType>
   <Iptc4xmpExt:AISystemUsed>{generator}</Iptc4xmpExt:AISystemUsed>
   <Iptc4xmpExt:AIPromptInformation>{prompt}</Iptc4xmpExt:AIPromptInformation>
   <xmp:CreatorTool>lbgen</xmp:CreatorTool>
   <dc:description><rdf:Alt><rdf:li xml:lang="x-default">{description}</rdf:li></rdf:Alt></dc:description>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHUNKS = (b"IHDR", b"tEXt", b"iTXt", b"zTXt", b"IDAT", b"IEND")
"""PNG chunks in lbgen's files: size and mode, texts, pixels."""
MOST_MASK_PIXELS = 2**25
"""Most pixels of a mask that is decoded."""


class Found(NamedTuple):
    """Where the N categories of the prompt are in a stored image."""

    mask: np.ndarray
    """(H, W) bytes: the number of the category from 1 to N, 0 for none."""
    scores: list[float]
    """(N,) in [0, 1]."""

    @property
    def boxes(self) -> list[tuple[int, int, int, int] | None]:
        """(N,) x, y, width, height in pixels of each category's bounding box; None if it was not found."""
        return [box_of(self.mask == number) for number in range(1, 1 + len(self.scores))]


class Rendered(NamedTuple):
    """A batch of B images."""

    pixels: np.ndarray
    """(B, H, W, 3) bytes."""
    found: list[Found] | None = None
    """None without --localize."""

    def rows(self, chosen: list[int]) -> "Rendered":
        return Rendered(self.pixels[chosen], None if self.found is None else [self.found[row] for row in chosen])


@dataclass(frozen=True)
class ImageMetadata:
    """How an image was generated. The field names are those of the JSON in image files."""

    generator: str
    """The value of --generator; for a folder, only the folder's name."""
    adapter_sha256: str | None
    """Hash of the adapter that was merged into the generator; None without an adapter."""
    prompt: str
    seed: int
    """Seed of the run; the noise of the image follows from (seed, split, id, index, attempt)."""
    id: str
    """Id of the category."""
    name: str
    """Name of the category."""
    index: int
    """Position among the images of the category in the split."""
    split: str
    attempt: int
    synthetic: bool = True

    def to_json(self) -> str:
        """One line of ASCII, for any characters in names and prompt."""
        return json.dumps(asdict(self))


def image_metadata(row: Row, generator_name: str, adapter_sha256: str | None) -> ImageMetadata:
    """The metadata in the file of an indexed image."""
    return ImageMetadata(
        generator=generator_name,
        adapter_sha256=adapter_sha256,
        prompt=row.prompt,
        seed=row.seed,
        id=row.id,
        name=row.name,
        index=row.index,
        split=row.split,
        attempt=row.attempt,
    )


def encode(
    pixels: np.ndarray,
    metadata: ImageMetadata,
    image_format: Literal["png", "jpeg", "webp"],
    compression_quality: int,
    stored_size: tuple[int, int] | None = None,
) -> bytes:
    """The content of an image file; equal arguments give equal bytes.

    pixels: (H, W, 3) bytes.  compression_quality: 1 to 100, for jpeg and webp; png is lossless.  stored_size: height
    and width to resize to; None keeps the size.  jpeg has colours at full resolution (4:4:4).
    """
    image = Image.fromarray(pixels)
    if stored_size is not None:
        height, width = stored_size
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    stream = BytesIO()
    if image_format == "png":
        image.save(stream, "png", pnginfo=_png_text(metadata))
    else:
        description = Image.Exif()
        description[ExifTags.Base.ImageDescription] = metadata.to_json()
        full_colour = {"subsampling": 0} if image_format == "jpeg" else {}
        image.save(
            stream,
            image_format,
            quality=compression_quality,
            exif=description,
            xmp=_xmp(metadata).encode(),
            **full_colour,
        )
    return stream.getvalue()


def encode_mask(mask: np.ndarray) -> bytes:
    """A mask as a PNG of one channel: 255 on the first category, 254 on the second, and so on; 0 elsewhere.

    Readers of masks treat all non-zero pixels as objects.  mask: (H, W) numbers from 1, 0 for none.
    """
    stream = BytesIO()
    Image.fromarray(np.negative(mask.astype(np.uint8))).save(stream, "png")  # of bytes: 1 to 255, 0 stays
    return stream.getvalue()


def decode_mask(content: bytes, size: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) that `encode_mask` wrote.

    Raises one of UNREADABLE, also for a mask of another size or with more than MOST_MASK_PIXELS, and for a PNG with
    chunks that `encode_mask` does not write: readers might rotate it, or show other frames.
    """
    refuse_other_chunks(content)
    with Image.open(BytesIO(content), formats=["png"]) as image:
        if (image.mode, image.height, image.width) != ("L", *size) or image.height * image.width > MOST_MASK_PIXELS:
            raise ValueError(f"mode {image.mode}, {image.height} x {image.width}")
        return np.negative(np.asarray(image))  # of bytes: 255 to 1, 0 stays


def refuse_other_chunks(content: bytes) -> None:
    """ValueError for a PNG with chunks that lbgen does not write (orientation, frames), or with bytes after its end."""
    place, kind = len(PNG_SIGNATURE), b""
    while content.startswith(PNG_SIGNATURE) and place + 8 <= len(content) and kind != b"IEND":
        length, kind = int.from_bytes(content[place : place + 4], "big"), content[place + 4 : place + 8]
        if kind not in PNG_CHUNKS:
            raise ValueError(f"chunk {kind!r}")
        place += 12 + length  # length, kind and checksum
    if kind != b"IEND" or place != len(content):
        raise ValueError("it does not end where a PNG ends")


def box_of(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """x, y, width, height of a mask's bounding box; None for an empty mask.  mask: (H, W) booleans."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y


def read_metadata(content: bytes, image_format: str) -> tuple[Any, tuple[int, int]]:
    """The JSON in the description of an image file, and the image's height and width; no pixel is decoded.

    Raises one of UNREADABLE, also for an image that readers may show differently: with transparency, another colour
    mode than RGB, several frames or an orientation.
    """
    if image_format == "png":
        refuse_other_chunks(content)
    with Image.open(BytesIO(content), formats=[image_format]) as image:
        if image.mode != "RGB" or "transparency" in image.info or getattr(image, "n_frames", 1) != 1:
            raise ValueError(f"mode {image.mode}")
        png = image_format == "png"
        if not png and image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            raise ValueError("an orientation")
        text = image.info["Description"] if png else image.getexif()[ExifTags.Base.ImageDescription]
        return parse_json(text), (image.height, image.width)


def _png_text(metadata: ImageMetadata) -> PngInfo:
    chunks = PngInfo()
    chunks.add_text("Description", metadata.to_json())
    chunks.add_itxt("XML:com.adobe.xmp", _xmp(metadata))
    return chunks


def _xmp(metadata: ImageMetadata) -> str:
    """An XMP packet (ISO 16684-1)."""
    return XMP.format(
        source_type=DIGITAL_SOURCE_TYPE,
        generator=_xml(metadata.generator),
        prompt=_xml(metadata.prompt),
        description=_xml(metadata.to_json()),
    )


def _xml(text: str) -> str:
    return escape(NOT_XML.sub("\ufffd", text))
