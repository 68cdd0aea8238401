"""Observing images: the columns of the cache, and a worker's part of a batch."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lbgen.audit import views
from lbgen.audit.views import Decoded
from lbgen.metrics.copies import small_picture
from lbgen.metrics.near_duplicates import GRID
from lbgen.metrics.pixels import brightness, colour_entropy, edge_density, sharpness
from lbgen.models.semantics import SemanticSpace

LABEL_TEMPLATE = "photo of {name}"
DIGEST = 32
"""Length of a cache key in bytes, a SHA-256."""


class NewImage(NamedTuple):
    """An image that is not in the cache, in the form that a worker gets."""

    key: bytes
    """Key of the cache: SHA-256 of the file, the mask and the category's name, which is used to locate the object."""
    digest: bytes
    """SHA-256 of the file."""
    content: bytes
    mask: bytes | None
    name: str
    """Name of its category."""


@dataclass(frozen=True)
class SeenBatch:
    """A worker's results for the new images of a batch."""

    keys: list[bytes]
    """(B,) keys of the usable images."""
    columns: dict[str, NDArray]
    """Name -> (B, ...), the columns of the cache."""
    faults: dict[bytes, str]
    """Key of each image that cannot be used -> the reason."""


class Observer:
    """Computes the cached columns of images with a semantic space."""

    def __init__(self, space: SemanticSpace, side: int) -> None:
        self.space, self.side = space, side
        self.inner = views.inside_border(side)
        self.texts: dict[str, Tensor] = {}
        """Category name -> text feature (D,)."""

    def fields(self) -> list[tuple[str, type, tuple[int, ...]]]:
        pixels = 3 * max(2, round(self.side * views.THUMBNAIL_SHARE)) ** 2
        half, byte, single = np.float16, np.uint8, np.float32
        seen = ("image", "background", "border", "shuffled", "shuffled_outside")
        return [
            *((name, half, (self.space.dimension,)) for name in seen),
            *((name, byte, (pixels,)) for name in ("thumbnail", "thumbnail_outside")),
            *((name, half, (views.HISTOGRAM_LEVELS**3,)) for name in ("histogram", "histogram_outside")),
            *((name, half, (views.EDGES,)) for name in ("edges", "edges_outside")),
            ("picture", byte, (3 * GRID**2,)),
            ("content", byte, (DIGEST,)),
            ("facts", single, (len(views.FACTS),)),
            ("place", single, (4,)),
            ("hue", byte, ()),
            ("mask_given", byte, ()),
            ("edge_density", single, ()),
            ("colour_entropy", single, ()),
            ("brightness", single, ()),
            ("sharpness", single, ()),
        ]

    @torch.no_grad()
    def columns(self, images: list[Decoded], names: list[str], seeds: list[int]) -> dict[str, NDArray]:
        """All columns of a batch of B images.  names: of their categories; seeds: of their patch shuffles."""
        canvas = torch.stack([image.canvas for image in images]).float() / 255  # (B, 3, S, S)

        # Hide the object; the image around it, and the shuffled patches, are separate views.
        hidden = self.hidden(images, canvas, names)  # (B, S, S)
        objects = torch.stack([hidden[i] if image.mask is None else image.mask for i, image in enumerate(images)])
        surroundings, embed = views.outside(canvas, hidden), self.space.embed_images
        shuffled, shuffled_outside = (views.patch_shuffle(shown, seeds) for shown in (canvas, surroundings))
        columns = {
            "image": embed(canvas),
            "background": embed(surroundings),
            "border": embed(views.outside(canvas, self.inner | hidden)),
            "shuffled": embed(shuffled),
            "shuffled_outside": embed(shuffled_outside),
            "thumbnail": (views.thumbnail(canvas) * 255).round(),
            "thumbnail_outside": (views.thumbnail(surroundings) * 255).round(),
            "histogram": views.colour_histogram(canvas),
            "histogram_outside": views.colour_histogram(surroundings),
            "edges": views.edge_histogram(shuffled),
            "edges_outside": views.edge_histogram(shuffled_outside),
            "picture": (small_picture(canvas) * 255).round(),
            "facts": torch.stack([image.facts for image in images]),
            "place": views.square_edges(hidden),
            "hue": views.dominant_hue(canvas, objects),
            "mask_given": torch.tensor([image.mask is not None for image in images]),
            "edge_density": edge_density(canvas),
            "colour_entropy": colour_entropy(canvas),
            "brightness": brightness(canvas),
            "sharpness": sharpness(canvas),
        }
        return {name: values.cpu().numpy() for name, values in columns.items()}

    def hidden(self, images: list[Decoded], canvas: Tensor, names: list[str]) -> Tensor:
        """(B, S, S) bool: the square that hides the object, from its mask or from the patches' relevance."""
        texts = torch.stack([self._text(name) for name in names])
        found = views.patch_relevance(self.space, canvas, texts)
        if found is None:
            found = views.central_relevance(len(images))
        hidden = views.square_of_relevance(found.cpu(), self.side)
        for row, image in enumerate(images):
            if image.mask is not None:
                hidden[row] = views.square_of_mask(image.mask[None])[0]
        return hidden

    def _text(self, name: str) -> Tensor:
        if name not in self.texts:
            self.texts[name] = self.space.embed_texts([LABEL_TEMPLATE.replace("{name}", name)])[0]
        return self.texts[name]


def canvas_side(space: SemanticSpace) -> int:
    """Side in pixels of the model's input."""
    return space.image_side


def observe_batch(observer: Observer, images: Sequence[NewImage], decoders: ThreadPoolExecutor) -> SeenBatch:
    """Decode new images, which have distinct keys, and compute the columns of the usable ones."""
    decoded = decoders.map(lambda image: views.decode(image.content, image.mask, observer.side), images)
    found = list(zip(images, decoded, strict=True))
    faults = {image.key: fault for image, fault in found if isinstance(fault, str)}
    usable = [(image, picture) for image, picture in found if isinstance(picture, Decoded)]
    if not usable:
        return SeenBatch([], {}, faults)
    seeds = [int.from_bytes(image.digest[:8], "big") for image, _ in usable]
    columns = observer.columns([picture for _, picture in usable], [image.name for image, _ in usable], seeds)
    digests = b"".join(image.digest for image, _ in usable)
    columns["content"] = np.frombuffer(digests, np.uint8).reshape(-1, DIGEST)
    return SeenBatch([image.key for image, _ in usable], columns, faults)
