"""How fast `lbgen pretrain` is fed: `python benchmarks/speed/feed.py [--workers 2]`.

Images per second of decoding and augmentation alone, also in timm's own loader; of the model on random tensors; and of
both together. The images are crops of the two photographs that come with scikit-learn, 500x375, as JPEG. Whole epochs
are timed after one that is not counted, with our loader and timm's in turn.
"""

import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import timm.data
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measuring import DEVICE, flags_parser, heading, markdown, parse_with, seconds_of
from lbgen.pretraining.config import PretrainConfig
from lbgen.pretraining.feed.images import TrainingBatch, layout_of
from lbgen.pretraining.loop import Course, kept_randomness, on_device, training_step, updates_of
from lbgen.pretraining.run import make_course, make_state, ready_sources
from lbgen.pretraining.state import PretrainingState
from lbgen.training.processes import start_accelerator

SIZE = (500, 375)
"""Width and height of the images; those of ImageNet have about as many pixels."""
CATEGORIES = 10


def write_photographs(folder: Path, count: int) -> None:
    """An image folder of JPEG crops of photographs, of random place and scale."""
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]  # 640x427
    rng = np.random.default_rng(0)
    for number in range(count):
        photograph, share = photographs[number % 2], rng.uniform(0.5, 0.85)
        width, height = int(share * photograph.width), int(share * photograph.width * SIZE[1] / SIZE[0])
        height = min(height, photograph.height)
        left, top = rng.integers(photograph.width - width + 1), rng.integers(photograph.height - height + 1)
        path = folder / f"c{number % CATEGORIES}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph.crop((left, top, left + width, top + height)).resize(SIZE).save(path, quality=90)


def timms_loader(folder: Path, config: PretrainConfig) -> Iterable:
    """timm's loader with the same augmentation; it normalises on the device too."""
    return timm.data.create_loader(
        timm.data.ImageDataset(str(folder)),
        input_size=config.image_size,
        batch_size=config.batch_size,
        is_training=True,
        scale=config.crop_area,
        ratio=config.crop_ratio,
        hflip=config.flip,
        color_jitter=config.color_jitter or None,
        auto_augment=config.auto_augment,
        interpolation=config.interpolation,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        num_workers=config.workers,
        pin_memory=DEVICE == "cuda",
        device=torch.device(DEVICE),
    )


def epoch_of(state: PretrainingState, course: Course, use: Callable[[TrainingBatch], object]) -> None:
    """Every batch of an epoch."""
    for batch in course.feed.batches(updates_of(state, course.sources).requests):
        use(batch)


def trained(state: PretrainingState, batch: TrainingBatch) -> None:
    training_step(state, batch, 1.0)
    state.progress.update = 0  # the same update again


def measure(folder: Path, config: PretrainConfig, repeats: int) -> dict[str, float]:
    """Images per second of each part."""
    sources = ready_sources([folder], config)
    images = sum(map(len, sources.training))
    state = make_state(config, sources, start_accelerator(config.precision, "none", config.folder, []))
    course, theirs = make_course(state, sources, []), timms_loader(folder, config)
    size = min(config.batch_size, images)
    shape = (size, 3, config.image_size, config.image_size)
    random = torch.randint(256, shape, dtype=torch.uint8, device=DEVICE).contiguous(memory_format=layout_of(config))
    made_up = TrainingBatch(random, torch.arange(size, device=DEVICE) % CATEGORIES, ())
    state.trained.train()
    parts: dict[str, Callable[[], object]] = {
        "lbgen's feed": lambda: epoch_of(state, course, lambda batch: on_device(state, batch)),
        "timm's loader": lambda: sum(len(batch) for batch, _ in theirs),
        "the model on random tensors": lambda: [trained(state, made_up) for _ in range(-(-images // size))],
        "both together": lambda: epoch_of(state, course, lambda batch: trained(state, batch)),
    }
    took: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(1 + repeats):
        for name, part in parts.items():
            took[name].append(seconds_of(part))
    counts = dict.fromkeys(parts, images) | {"the model on random tensors": size * -(-images // size)}
    counts["timm's loader"] = size * (images // size)  # it drops what does not fill a batch
    return {name: counts[name] / median(seconds[1:]) for name, seconds in took.items()}


def main(argv: list[str] | None = None) -> None:
    parser = flags_parser(__doc__)
    parser.add_argument("--recipe", default="resnet50")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    arguments, fields = parse_with(parser, PretrainConfig, argv)
    config = PretrainConfig.from_recipe(arguments.recipe, **{"held_out": 0.0, "logger": "none", **fields})
    with tempfile.TemporaryDirectory() as name, kept_randomness():
        write_photographs(Path(name) / "photographs", arguments.images)
        config = replace(config, output=Path(name) / "run")
        speeds = measure(Path(name) / "photographs", config, arguments.repeats)
    print(heading())
    print(
        f"{arguments.images:,} images, {config.architecture}, batches of {config.batch_size}, {config.workers} workers"
    )
    print(markdown([["part", "images/s"], *[[part, f"{speed:,.0f}"] for part, speed in speeds.items()]]))
    ours, theirs, model, both = speeds.values()
    print(
        f"lbgen's feed reaches {ours / theirs:.0%} of timm's loader, and both together {both / model:.0%} of the model"
    )


if __name__ == "__main__":
    main()
