"""What lbgen and others stored, changed at random: datasets, runs, adapters, models. Read, or refused in one line."""

import copy
import io
import json
import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import LAYOUTS
from hostile import VALUES, changed, changed_json, changed_lines, damaged, fuzz, replaced
from safetensors import safe_open
from safetensors.torch import load_file, save

from lbgen.alignment import checkpoint, run
from lbgen.configuration.saved import ensure_same
from lbgen.generation.run import generate
from lbgen.generation.verify import verify
from lbgen.models import adapter
from lbgen.models.generator import load_generator
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
    generate(
        replace(
            config, output=output, format=request.param, screen=("duplicate",), duplicate_bits=0, images_per_category=2
        )
    )
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
    vocabulary, accelerator = load_vocabulary(finished.vocabulary), run.start_accelerator(finished)

    def use(rng: random.Random) -> None:
        path = rng.choice([*files, *described])
        with replaced(path, changed_file(path, rng)):
            ensure_same(finished, finished.folder / "config.yaml", ignore=run.may_change(finished))
            run.ensure_same_weights(finished, vocabulary)
            if resumed := checkpoint.newest(finished.folder):
                checkpoint.ensure_unchanged(resumed)
                run.ensure_resumable(resumed, run.initial_progress(finished, vocabulary, accelerator))
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
                with suppress(ValueError):  # names the weight, and becomes a UserError in Generator.load_adapter
                    adapter.restore(copy.deepcopy(unet), config, tensors)

    fuzz(use)
