"""From pixels to an image file that carries what made it. Runs in processes that know nothing of torch.

The facts stand in the file twice: as XMP, in the properties that the IPTC's standard (2025.1) gives to generated images
and that search engines and photo archives read, and as one line of JSON, which is the file's description.
"""

import json
import re
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Literal
from xml.sax.saxutils import escape

import numpy as np
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""The IPTC's term for "made by a generative model"."""

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, escaped or not."""

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


@dataclass(frozen=True)
class Facts:
    """What made an image."""

    generator: str
    """As --generator names it; of a folder its own name."""
    adapter_sha256: str | None
    """Of the adapter merged into the generator; None for the generator as it is."""
    prompt: str
    seed: int
    """Of the run; the image's own noise follows from (seed, split, id, index, attempt)."""
    id: str
    """The category's."""
    name: str
    index: int
    split: str
    attempt: int
    synthetic: bool = True

    def to_json(self) -> str:
        """One line of ASCII, whatever the names and the prompt hold."""
        return json.dumps(asdict(self))


def encode(
    pixels: np.ndarray,
    facts: Facts,
    image_format: Literal["png", "jpeg", "webp"],
    compression_quality: int,
    stored_size: tuple[int, int] | None = None,
) -> bytes:
    """An image file of `stored_size` (height, width), or of the pixels' own; equal arguments give equal bytes.

    pixels: (H, W, 3) bytes. compression_quality: 1 to 100, of jpeg and webp; png is lossless. jpeg keeps colours
    at full resolution (4:4:4).
    """
    image = Image.fromarray(pixels)
    if stored_size is not None:
        height, width = stored_size
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    stream = BytesIO()
    if image_format == "png":
        image.save(stream, "png", pnginfo=_png_text(facts))
    else:
        description = Image.Exif()
        description[ExifTags.Base.ImageDescription] = facts.to_json()
        full_colour = {"subsampling": 0} if image_format == "jpeg" else {}
        image.save(
            stream, image_format, quality=compression_quality, exif=description, xmp=_xmp(facts).encode(), **full_colour
        )
    return stream.getvalue()


def _png_text(facts: Facts) -> PngInfo:
    chunks = PngInfo()
    chunks.add_text("Description", facts.to_json())
    chunks.add_itxt("XML:com.adobe.xmp", _xmp(facts))
    return chunks


def _xmp(facts: Facts) -> str:
    """An XMP packet (ISO 16684-1)."""
    return XMP.format(
        source_type=DIGITAL_SOURCE_TYPE,
        generator=_xml(facts.generator),
        prompt=_xml(facts.prompt),
        description=_xml(facts.to_json()),
    )


def _xml(text: str) -> str:
    return escape(NOT_XML.sub("\ufffd", text))
