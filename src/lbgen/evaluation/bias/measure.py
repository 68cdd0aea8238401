"""Computing a backbone's answers to a benchmark in chunks of images, each saved when it is complete."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image, ImageFile
from timm.data import create_transform
from torch import Tensor

from lbgen.datasets.decode import FORMATS
from lbgen.errors import UserError
from lbgen.evaluation.bias import answers
from lbgen.evaluation.bias.benchmark import Benchmark, BenchmarkPart, Item
from lbgen.evaluation.bias.classes import outputs_of_imagenet
from lbgen.models.backbones.backbone import Backbone
from lbgen.runs import atomic
from lbgen.runs.console import Progress

CHUNK = 2048
"""Number of images whose answers are saved together, and the most that an interrupted run loses."""
READERS = 8
"""Most threads that decode images."""


def answer(
    benchmark: Benchmark, parts: Sequence[BenchmarkPart], backbone: Backbone, path: Path, batch_size: int
) -> None:
    """Write the answers to all images as CSV; chunks saved by an interrupted run are not computed again."""
    order = torch.tensor(outputs_of_imagenet(backbone.name, backbone.class_names, backbone.outputs))
    order = order.to(backbone.device)
    prepare = _preparation(benchmark, backbone)
    chunks = path.with_suffix(".parts")
    chunks.mkdir(parents=True, exist_ok=True)
    written = []
    with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as pool:
        for number, part in enumerate(parts):
            items = part.items()
            title = benchmark.name if len(parts) == 1 else f"{benchmark.name} {part.name}"
            with Progress(title, len(items), "images") as progress:
                for start in range(0, len(items), CHUNK):
                    chunk = items[start : start + CHUNK]
                    written.append(chunks / f"{number:04}-{start:08}.csv")
                    if not _is_of(written[-1], benchmark, chunk):
                        rows = list(_rows(benchmark, backbone, order, prepare, chunk, batch_size, pool))
                        answers.write(written[-1], benchmark.columns, rows)
                    progress.advance(len(chunk))
    _join(written, path)
    atomic.remove_tree(chunks)


def _is_of(path: Path, benchmark: Benchmark, items: Sequence[Item]) -> bool:
    """Whether a chunk is saved; UserError if it is of other images."""
    if not path.is_file():
        return False
    saved = answers.read(path, benchmark.columns).values("imagename")
    if [str(name) for name in saved] != [item.known[-1] for item in items]:
        raise UserError(f"{path}: made with other images than --data has now; restore them, or choose another --output")
    return True


def _rows(
    benchmark: Benchmark,
    backbone: Backbone,
    order: Tensor,
    prepare: Callable[[str], Tensor],
    items: Sequence[Item],
    batch_size: int,
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[str, ...]]:
    """The columns of every image, in order.  order: (1000,) index of the backbone's output for each ImageNet class."""
    for batch, images in _batches(items, prepare, batch_size, pool):
        logits = backbone.logits(images)[:, order]  # (B, 1000)
        yield from ((*answered, *item.known) for answered, item in zip(benchmark.decide(logits), batch, strict=True))


def _batches(
    items: Sequence[Item], prepare: Callable[[str], Tensor], size: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[Sequence[Item], Tensor]]:
    """Batches of images (B, 3, H, W); the next batch is decoded while the current one is used."""
    waiting: tuple[Sequence[Item], list[Future[Tensor]]] | None = None
    for start in range(0, len(items) + size, size):
        batch = items[start : start + size]
        submitted = [pool.submit(prepare, item.path) for item in batch]
        if waiting:
            yield waiting[0], torch.stack([future.result() for future in waiting[1]])
        waiting = (batch, submitted) if batch else None


def _join(chunks: Sequence[Path], path: Path) -> None:
    """Write one CSV with all chunks and one header."""
    with atomic.replacing(path) as temporary, temporary.open("wb") as whole:
        for number, chunk in enumerate(chunks):
            header, content = chunk.read_bytes().split(b"\n", 1)
            whole.write(content if number else header + b"\n" + content)


# ---- an image file as the backbone's input ----


def _preparation(benchmark: Benchmark, backbone: Backbone) -> Callable[[str], Tensor]:
    """The function from a path to the backbone's input, (3, H, W)."""
    transform = backbone.transform
    if benchmark.whole:
        transform = create_transform(
            backbone.input_size,
            interpolation="bilinear",
            mean=backbone.mean,
            std=backbone.std,
            crop_pct=1.0,
            is_training=False,
        )

    def prepare(path: str) -> Tensor:
        picture = _picture(path, benchmark.takes_cut_off)
        if benchmark.border:
            width, height = picture.size
            picture = picture.crop(
                (benchmark.border, benchmark.border, width - benchmark.border, height - benchmark.border)
            )
        return transform(picture)

    return prepare


def _picture(path: str, takes_cut_off: bool = False) -> Image.Image:
    """The picture in RGB, not rotated by EXIF, as in the published evaluations.

    takes_cut_off: decode a truncated file as far as possible.
    """
    try:
        return _decoded(path)
    except Exception as error:  # Pillow may raise anything for a file that is not an image
        if takes_cut_off:
            return _decoded_as_far_as_it_goes(path)
        raise _unreadable(path, error) from None


def _decoded(path: str) -> Image.Image:
    with Image.open(path, formats=FORMATS) as image:
        return image.convert("RGB")


def _decoded_as_far_as_it_goes(path: str) -> Image.Image:
    with _SETTING:
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            return _decoded(path)
        except Exception as error:
            raise _unreadable(path, error) from None
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = False


_SETTING = threading.Lock()
"""Lock for Pillow's setting, which is global to all threads."""


def _unreadable(path: str, error: Exception) -> UserError:
    return UserError(f"{path}: it is not an image that can be read ({error}); get it again")
