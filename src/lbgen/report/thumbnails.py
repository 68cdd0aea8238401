"""Small pictures for a page, read back from the datasets in one more pass over the wanted images only."""

import base64
import io

from PIL import Image

from lbgen.datasets import decode
from lbgen.datasets.records import Source

QUALITY = 70


def thumbnail_uris(source: Source, wanted: set[str], side: int) -> dict[str, str]:
    """Key -> WebP data URI of the picture's middle square, for the images that can still be read."""
    found: dict[str, str] = {}
    for record in source.records(wanted):
        if record.key in wanted and record.content is not None:
            found[record.key] = webp_uri(record.content, side)
            if len(found) == len(wanted):
                break
    return found


def webp_uri(content: bytes, side: int) -> str:
    """Upright and on white, as the audit saw it."""
    picture = decode.as_seen(Image.open(io.BytesIO(content), formats=decode.READ))
    thumbnail = decode.square(picture, min(side, *picture.size), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    thumbnail.save(stream, "WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
