"""Thumbnails for a page, from an additional pass over the dataset that reads only the wanted images."""

import base64
import io

from PIL import Image

from lbgen.datasets import decode
from lbgen.datasets.records import DatasetReader

QUALITY = 70


def thumbnail_uris(reader: DatasetReader, wanted: set[str], side: int) -> dict[str, str]:
    """Key -> WebP data URI of the image's centre square, for the wanted images that can still be read."""
    found: dict[str, str] = {}
    for record in reader.records(wanted):
        if record.key in wanted and record.content is not None:
            if uri := webp_uri(record.content, side):
                found[record.key] = uri
            if len(found) == len(wanted):
                break
    return found


def webp_uri(content: bytes, side: int) -> str:
    """A square of at most `side` pixels, decoded like the images that the audit measures; empty if decoding fails."""
    seen = decode.centre_of(content, side, Image.Resampling.LANCZOS, enlarge=False)
    if isinstance(seen, str):
        return ""
    stream = io.BytesIO()
    seen.picture.save(stream, "WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
