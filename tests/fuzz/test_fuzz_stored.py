"""What lbgen and others stored, changed at random: datasets, runs, adapters, models. Read, or refused in one line."""

import copy
import io
import json
import random
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import datasets
import handmade
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import LAYOUTS
from hostile import VALUES, changed, changed_json, changed_lines, damaged, fuzz, replaced
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save

from lbgen.alignment import checkpoint, run
from lbgen.configuration.saved import ensure_same
from lbgen.datasets.decode import centre_of
from lbgen.datasets.open import open_dataset
from lbgen.generation.run import generate
from lbgen.generation.verify import verify
from lbgen.models import adapter
from lbgen.models.families.stable_diffusion import StableDiffusion
from lbgen.models.generator import load_generator
from lbgen.models.loading import loading
from lbgen.models.semantics import load_semantics
from lbgen.runs import identity
from lbgen.vocabulary.vocabulary import load_vocabulary


def changed_file(path: Path, rng: random.Random) -> bytes:
    """Other content of a stored file, by its kind."""
    content = path.read_bytes()
    if path.suffix in (".json", ".yaml") and content[:1] in b"{[":
        return changed_json(content, rng)
    if path.suffix == ".jsonl":
        return changed_lines(content, rng)
    if path.parent.name == "index" and rng.random() < 2 / 3:
        return changed_index(content, rng)
    return damaged(content, rng)


def changed_index(content: bytes, rng: random.Random) -> bytes:
    """A part of an index with another value in some cell, of the column's type if that is possible."""
    table = pq.read_table(io.BytesIO(content))
    rows, column = table.to_pylist(), rng.choice(table.schema)
    rng.choice(rows)[column.name] = rng.choice(VALUES)
    try:
        table = pa.Table.from_pylist(rows, table.schema)
    except (pa.ArrowException, UnicodeError, OverflowError, TypeError):
        table = table.drop_columns([column.name])
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


@pytest.fixture(scope="module", params=LAYOUTS)
def dataset(request, config, tmp_path_factory):
    """A screened dataset in each format."""
    output = str(tmp_path_factory.mktemp("fuzz") / request.param)
    made = replace(config, output=output, format=request.param, images_per_category=2)
    generate(replace(made, screen=("duplicate",), screen_semantics="microworld", duplicate_bits=0))
    return Path(output)


def test_datasets(dataset):
    files = sorted(path for path in dataset.rglob("*") if path.is_file())
    files = [path for path in files if path.name not in ("README.md", "samples.png", ".lock")]

    def use(rng: random.Random) -> None:
        path = rng.choice(files)
        with replaced(path, changed_file(path, rng)):
            verify(dataset)

    fuzz(use, share=1 / 3)


def test_runs(finished):
    """All that resuming reads before it loads the models."""
    files = sorted(path for path in finished.folder.rglob("*") if path.is_file() and path.suffix != ".png")
    described = [path for path in files if path.suffix in (".json", ".jsonl", ".yaml")]
    vocabulary = load_vocabulary(finished.vocabulary)

    def use(rng: random.Random) -> None:
        path = rng.choice([*files, *described])
        with replaced(path, changed_file(path, rng)):
            ensure_same(finished, finished.folder / "config.yaml", ignore=run.may_change(finished))
            if path.name == "provenance.json":  # else no hash of the models is compared
                run.ensure_same_weights(finished, vocabulary)
            if resumed := checkpoint.newest(finished.folder):
                checkpoint.ensure_unchanged(resumed)
                run.ensure_resumable(resumed, run.initial_progress(finished, vocabulary, 1))
                checkpoint.is_published(resumed, finished.folder / "adapter")
            checkpoint.drop_lines_after(finished.folder / "metrics.jsonl", 1)

    fuzz(use)


def test_adapters(finished, tiny_sd_folder):
    """Bytes of the file, and the description in its header."""
    folder = finished.folder / "adapter"
    path = folder / adapter.ADAPTER_FILE
    with safe_open(path, framework="pt") as file:
        description = json.loads(file.metadata()[adapter.METADATA])
    weights = load_file(path)
    unet = load_generator(str(tiny_sd_folder)).family.unet

    def use(rng: random.Random) -> None:
        content = damaged(path.read_bytes(), rng)
        if rng.random() < 2 / 3:
            kept = {name: tensor for name, tensor in weights.items() if rng.random() < 0.95}
            content = save(kept, {adapter.METADATA: json.dumps(changed(description, rng))})
        with replaced(path, content):
            for config, tensors in adapter.read(folder, ["unet", "text_encoder"]).values():
                if rng.random() < 0.1:  # it takes longest
                    with suppress(ValueError):  # names the weight, and becomes a UserError in Generator.load_adapter
                        adapter.restore(copy.deepcopy(unet), config, tensors)

    fuzz(use)


@pytest.fixture(scope="module", params=[*LAYOUTS, "arrow", "listed"])
def anyones(request, tmp_path_factory):
    """A labelled dataset in a format that others write too."""
    folder = tmp_path_factory.mktemp("fuzz-anyones") / request.param
    if request.param in LAYOUTS:
        handmade.make(folder, request.param)
    elif request.param == "arrow":
        save_to_disk(folder)
    else:
        folder.mkdir()
        lines = [{"file_name": f"{sample.key}.png", "label": sample.label} for sample in handmade.samples()]
        for sample in handmade.samples():
            (folder / f"{sample.key}.png").write_bytes(sample.content)
        (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def save_to_disk(folder: Path) -> None:
    """An .arrow file, as the datasets library writes it."""
    samples = handmade.samples()
    labels = datasets.ClassLabel(names=[category.id for category in handmade.CATEGORIES])
    rows = [{"image": {"bytes": one.content, "path": None}, "label": one.label} for one in samples]
    features = datasets.Features({"image": datasets.Image(), "label": labels})
    datasets.Dataset.from_list(rows, features=features).save_to_disk(folder)


def test_anyones_datasets(anyones):
    """What the audit reads: every image, or a fault in its place."""
    files = sorted(path for path in anyones.rglob("*") if path.is_file() and path.parent.name != "index")

    def use(rng: random.Random) -> None:
        path = rng.choice(files)
        with replaced(path, changed_file(path, rng)):
            reader = open_dataset(anyones)
            reader.labels()
            for record in reader.records():
                if record.content is not None:
                    centre_of(record.content, 8, Image.Resampling.BICUBIC)

    fuzz(use, share=1 / 5)


def read_generator(folder: str) -> None:
    """What lbgen itself reads of a checkpoint: before it loads one, and to know it again."""
    with loading("generator", folder, "model_index.json"):
        StableDiffusion.refuse_other_parts(folder)
    identity.weights_sha256(folder)


def read_semantics(folder: str) -> None:
    with loading("--semantics", folder, "config.json"):
        pass
    identity.weights_sha256(folder)
    identity.model_identity(folder)


@pytest.mark.parametrize("kind", ["generator", "semantics"])
def test_models(kind, tiny_sd_folder, tiny_clip_folder, tmp_path):
    """Some are loaded too; that takes a tenth of a second, in which diffusers and transformers do nearly all work."""
    kinds = {
        "generator": (tiny_sd_folder, read_generator, load_generator),
        "semantics": (tiny_clip_folder, read_semantics, load_semantics),
    }
    source, read, load = kinds[kind]
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    files = sorted(path for path in folder.rglob("*") if path.is_file())

    def use(rng: random.Random) -> None:
        path = rng.choice(files)
        with replaced(path, changed_file(path, rng)):
            read(str(folder))
            if rng.random() < 0.04:
                load(str(folder))

    fuzz(use, share=1 / 2)
