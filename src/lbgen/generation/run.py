"""The generation stage: draw what the plan holds and the folder does not."""

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

import lbgen.config
from lbgen import dataset, files, provenance
from lbgen.errors import Interrupted, UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import Plan
from lbgen.generation.render import Painter, path_of, row_of, store
from lbgen.interrupts import noted_signals
from lbgen.models import adapter
from lbgen.models.generator import PRECISIONS, Generator, load_generator
from lbgen.models.registry import GENERATORS, resolve
from lbgen.vocabulary import Vocabulary, load_vocabulary


@dataclass(frozen=True)
class Provenance:
    """What `dataset.yaml` holds (see lbgen.provenance)."""

    vocabulary_sha256: str
    generator_sha256: str | None
    adapter_sha256: str | None
    versions: tuple[str, ...]


@dataclass(frozen=True)
class GenerateResult:
    output: Path
    images: int
    """Images in the folder."""
    seconds: float
    """Wall time of this call."""


def generate(config: GenerateConfig) -> GenerateResult:
    """Make the dataset folder `config.output`, or go on with it; see lbgen.dataset for its layout."""
    started = time.monotonic()
    vocabulary = load_vocabulary(config.vocabulary, qualify=config.qualify_names)
    plan = Plan(vocabulary, config.images_per_category, config.images_per_shard, config.batch_size)
    check_folder(config)
    missing = [shard for shard in range(plan.shards) if not dataset.part_path(config.output, shard).exists()]
    painter = Painter(load(config, vocabulary), config) if missing else None
    origin = origin_of(config, vocabulary)  # after loading, which may have brought weights from the hub
    check_origin(config, origin, finished=not missing)
    if painter:
        try:
            record(config, origin)
            draw(plan, missing, painter, config)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{config.output}: {reason}; nothing is lost, make room and start again") from error
    print(f"{plan.images} images of {len(vocabulary)} categories in {config.output}")
    return GenerateResult(config.output, plan.images, time.monotonic() - started)


def origin_of(config: GenerateConfig, vocabulary: Vocabulary) -> Provenance:
    """Hashes and versions of all that goes into this dataset."""
    weights = adapter_file(config)
    return Provenance(
        vocabulary_sha256=provenance.vocabulary_sha256(vocabulary),
        generator_sha256=provenance.weights_sha256(resolve(config.generator, GENERATORS)),
        adapter_sha256=None if weights is None else files.sha256(weights),
        versions=provenance.versions(),
    )


def adapter_file(config: GenerateConfig) -> Path | None:
    file = None if config.adapter is None else config.adapter / adapter.FILE
    if file is not None and not os.path.isfile(file):
        raise UserError(f"--adapter {config.adapter}: no {adapter.FILE} in it; give an alignment run's adapter folder")
    return file


def load(config: GenerateConfig, vocabulary: Vocabulary) -> Generator:
    """The generator on the GPU if there is one, the adapter merged into its weights."""
    adapter_file(config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if config.precision == "fp16" and device == "cpu":
        raise UserError("--precision fp16 needs a GPU; choose fp32 or bf16")
    generator = load_generator(
        config.generator,
        dtype=PRECISIONS[config.precision],
        device=device,
        scheduler=config.scheduler,
        guidance_scale=config.guidance_scale,
        guidance_rescale=config.guidance_rescale,
    )
    generator.timesteps(config.steps)  # refuses more than there are
    vocabulary.check_tokens(generator.count_tokens, generator.token_limit, config.prompt_template)
    if config.adapter is not None:
        generator.merge_adapter(config.adapter)
    generator.optimize()
    return generator


def check_folder(config: GenerateConfig) -> None:
    """Refuse a folder that cannot be written, or that holds anything but a dataset of the same configuration."""
    output = config.output
    files.ensure_writable(output)
    if (output / "config.yaml").exists():
        lbgen.config.ensure_same(config, output / "config.yaml", ignore=("output", "adapter"))  # it may have moved
    if (output / dataset.SPLIT).exists() and not (output / "dataset.yaml").exists():
        raise UserError(f"--output {output}: holds a {dataset.SPLIT} folder lbgen did not make; choose another")


def check_origin(config: GenerateConfig, origin: Provenance, finished: bool) -> None:
    """Refuse a dataset of another origin. What is finished stays so under other versions: nothing more is drawn."""
    path = config.output / "dataset.yaml"
    if path.exists():
        lbgen.config.ensure_same(origin, path, ignore=("versions",), remedy="restore what it was made with")
        if not finished:
            provenance.ensure_versions(path)


def record(config: GenerateConfig, origin: Provenance) -> None:
    """Write what makes the dataset, before its first image; the folder may be moved, so its own place is "."."""
    if not (config.output / "dataset.yaml").exists():
        lbgen.config.save(replace(config, output=Path(".")), config.output / "config.yaml")
        lbgen.config.save(origin, config.output / "dataset.yaml")


def draw(plan: Plan, shards: list[int], painter: Painter, config: GenerateConfig) -> None:
    """Draw these shards' batches, but for those whose images are all there; a signal ends the run before the next."""
    done = plan.images - sum(len(plan.shard(shard)) for shard in shards)
    with (
        noted_signals() as signals,
        ThreadPoolExecutor() as pool,
        tqdm(desc="generate", total=plan.images, initial=done, unit="image", dynamic_ncols=True) as bar,
    ):
        for shard in shards:
            writing: list[Future[None]] = []
            for batch in plan.batches(shard):
                if signals:
                    raise Interrupted(signals[0], f"{config.output} keeps its finished images; start again to go on")
                if not all(path_of(image, config).exists() for image in batch):
                    pixels = painter.paint(batch)  # (B, H, W, 3); the batch before is written meanwhile
                    finish(writing)
                    writing = [pool.submit(store, *pair, config) for pair in zip(batch, pixels, strict=True)]
                bar.update(len(batch))
            finish(writing)
            rows = [pool.submit(row_of, image, shard, config) for batch in plan.batches(shard) for image in batch]
            dataset.write_part(config.output, shard, [row.result() for row in rows])


def finish(writing: list[Future[None]]) -> None:
    """Wait for these files, and raise what kept one from being written."""
    for future in writing:
        future.result()
