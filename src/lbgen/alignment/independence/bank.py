"""What the base generator draws of itself: looks of its own images, made once at the start of a run.

Every image's noise is its own and every chunk is sampled alone, so the bank is the same whatever the number of
processes, and an interrupted one goes on with the chunks that are missing.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from lbgen.alignment.config import AlignConfig
from lbgen.errors import UserError
from lbgen.models.registry import GENERATORS, SEMANTICS, resolve
from lbgen.runs import atomic, identity
from lbgen.vocabulary.vocabulary import Vocabulary

CHUNK = 16
"""Images sampled at a time and written as one file."""
IMAGES_PER_CATEGORY = 8
"""At the least: what varies inside a category cannot be seen in one image."""
DEPENDS_ON = ("seed", "independence_bank", "independence_thumbnail", "prompt_template", "scheduler", "steps",
              "guidance_scale", "guidance_rescale", "precision")  # fmt: skip
"""Fields that change the bank, beside the categories and the weights."""

Place = tuple[int, int]
"""A category's place in the vocabulary, and the number of the image within it."""


def bank_places(images: int, categories: int) -> list[Place]:
    """Where each image belongs: to as many categories as get their share of images, spread over the vocabulary."""
    rows = min(categories, images // IMAGES_PER_CATEGORY)
    return [(place % rows * categories // rows, place // rows) for place in range(images)]


def bank_path(config: AlignConfig, vocabulary: Vocabulary) -> Path:
    """A name of its own for everything that a bank depends on: one left by another attempt is not taken for it."""
    key = [
        *(getattr(config, name) for name in DEPENDS_ON),
        identity.vocabulary_sha256(vocabulary),
        identity.weights_sha256(resolve(config.generator, GENERATORS)),
        identity.weights_sha256(resolve(config.semantics, SEMANTICS)),
    ]
    return config.folder / f"bank-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]}.safetensors"


def load_bank(
    path: Path, places: list[Place], share: tuple[int, int], draw: Callable[[list[Place]], Tensor],
    wait: Callable[[], None],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Looks (N, L) of the images of `places`, and their categories (N,); made where there is no such file.

    draw: places of one chunk to looks (n, L).  share: this process and the number of processes, each of which makes
    its chunks; `wait` is for the others.
    """
    folder = path.with_suffix("")
    atomic.refuse_links(path.parent, [path.name, folder.name])
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        chunks = [places[start : start + CHUNK] for start in range(0, len(places), CHUNK)]
        parts = [folder / f"{number:05d}.safetensors" for number in range(len(chunks))]
        mine = list(zip(parts, chunks, strict=True))[share[0] :: share[1]]
        for part, chunk in tqdm(mine, desc="bank of the base's images", disable=share[0] != 0):
            if not part.exists():
                looks = draw(chunk)
                if not torch.isfinite(looks).all():
                    raise UserError(f"{folder}: the base generator's images are not finite; choose another --precision")
                atomic.write_bytes(part, save({"looks": looks.contiguous()}))
        wait()
        if share[0] == 0:
            for part in parts:
                if not part.exists():
                    raise UserError(
                        f"{part}: made by another process, and not here; put --output where all see one disk"
                    )
            whole = torch.cat([load_file(part)["looks"] for part in parts])
            atomic.write_bytes(path, save({"looks": whole, "rows": torch.tensor([row for row, _ in places])}))
            shutil.rmtree(folder)
    wait()
    bank = load_file(path)
    return bank["looks"], bank["rows"]
