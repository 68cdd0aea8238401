"""The bank: descriptors of the base generator's own images, made once at the start of a run.

Every image has its own noise and every chunk is sampled alone, so the bank does not depend on the number of processes,
and an interrupted one continues with the missing chunks.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lbgen.alignment import checkpoint
from lbgen.alignment.config import AlignConfig
from lbgen.errors import UserError
from lbgen.runs import atomic, console
from lbgen.runs.identity import Identity
from lbgen.vocabulary.vocabulary import Vocabulary

CHUNK = 16
"""Images sampled at a time and written as one file."""
IMAGES_PER_CATEGORY = 8
"""Least number of images per category, because one image does not show the variance within a category."""
DEPENDS_ON = ("seed", "independence_bank", "independence_thumbnail", "prompt_template", "scheduler", "steps",
              "guidance_scale", "guidance_rescale", "precision")  # fmt: skip
"""Fields that change the bank, besides the categories and the weights."""

BankImage = tuple[int, int]
"""Category index, and image index within the category."""


def bank_images(count: int, categories: int) -> list[BankImage]:
    """The images of the bank: several per category, of as many categories as `count` allows, spread evenly."""
    used = min(categories, count // IMAGES_PER_CATEGORY)
    return [(number % used * categories // used, number // used) for number in range(count)]


def bank_path(config: AlignConfig, vocabulary: Vocabulary, recorded: Identity | None = None) -> Path:
    """The bank's file. Its name has a digest of everything that the bank depends on, so only a fitting bank is used.

    recorded: the identity of the resumed run; the form of its hashes tells how the file was named.
    """
    hashes = checkpoint.identity_of(config, vocabulary, recorded).hashes
    key = [
        *(getattr(config, name) for name in DEPENDS_ON),
        *(hashes[name] for name in ("vocabulary", "generator", "semantics")),
        *([config.true_cfg_scale] if config.true_cfg_scale != 1 else []),
        *(["pipeline_instruction"] if config.pipeline_instruction else []),
    ]
    return config.folder / f"bank-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]}.safetensors"


def load_bank(
    path: Path,
    images: Sequence[BankImage],
    process: tuple[int, int],
    describe: Callable[[Sequence[BankImage]], Tensor],
    wait: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    """Descriptors (N, L) and category indices (N,) of `images`; the file is made if it is missing.

    process: index of this process and number of processes; each makes its own chunks.
    describe: samples the images of one chunk and returns their descriptors (n, L).
    wait: returns when all processes have called it.
    Raises UserError if a descriptor is not finite, or if a chunk of another process is not on this disk.
    """
    atomic.refuse_links(path.parent, [path.name, path.with_suffix("").name])
    if not path.exists():
        chunks = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
        files = [path.with_suffix("") / f"{number:05d}.safetensors" for number in range(len(chunks))]
        _make_chunks(list(zip(files, chunks, strict=True)), process, describe)
        wait()
        if process[0] == 0:
            _merge_chunks(path, files, images)
    wait()
    bank = load_file(path)
    return bank["looks"], bank["rows"]  # names, in the file, of descriptors and category indices


def _make_chunks(
    chunks: Sequence[tuple[Path, Sequence[BankImage]]],
    process: tuple[int, int],
    describe: Callable[[Sequence[BankImage]], Tensor],
) -> None:
    """Write this process's chunks, every count-th from its index on, unless they exist."""
    index, count = process
    own = chunks[index::count]
    for file, images in console.tracked(own, "bank of base images", len(own), "batches", shown=index == 0):
        if file.exists():
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptors = describe(images)
        if not torch.isfinite(descriptors).all():
            raise UserError(f"{file.parent}: the base generator's images are not finite; choose another --precision")
        atomic.write_bytes(file, save({"looks": descriptors.contiguous()}))


def _merge_chunks(path: Path, files: Sequence[Path], images: Sequence[BankImage]) -> None:
    """Write the bank from its chunks and remove them."""
    for file in files:
        if not file.exists():
            raise UserError(
                f"{file}: another process made it on another disk; choose an --output that all processes share"
            )
    descriptors = torch.cat([load_file(file)["looks"] for file in files])
    category_indices = torch.tensor([index for index, _ in images])
    atomic.write_bytes(path, save({"looks": descriptors, "rows": category_indices}))
    shutil.rmtree(path.with_suffix(""))
