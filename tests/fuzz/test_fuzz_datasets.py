"""Datasets, lbgen's and others', changed at random: read, or refused in one line."""

import json
import random
from dataclasses import replace
from pathlib import Path

import datasets
import handmade
import pytest
from handmade import LAYOUTS
from hostile import changed_file, fuzz, replaced
from PIL import Image
from unverified import differences, is_listed

from lbgen.datasets.decode import centre_of
from lbgen.datasets.open import open_dataset
from lbgen.generation.run import generate
from lbgen.generation.verify import verify


@pytest.fixture(scope="module", params=[*LAYOUTS, "composed"])
def dataset(request, config, tmp_path_factory):
    """A screened dataset in each format, and one with two categories in each image."""
    output = str(tmp_path_factory.mktemp("fuzz") / request.param)
    made = replace(config, output=output, images_per_category=2)
    if request.param == "composed":
        made = replace(made, localize=True, compose=2)
    else:
        made = replace(made, format=request.param)
    generate(replace(made, screen=("duplicate",), screen_semantics="microworld", duplicate_bits=0))
    return Path(output)


def test_datasets(dataset):
    """Where verify says that all is whole, a reader gets what was there, but for the listed exceptions."""
    files = sorted(path for path in dataset.rglob("*") if path.is_file())
    files = [path for path in files if path.name not in ("README.md", "samples.png", ".lock")]

    def use(rng: random.Random) -> None:
        path = rng.choice(files)
        before, after = path.read_bytes(), changed_file(path, rng)
        with replaced(path, after):
            is_whole = not verify(dataset).damaged
        changes = differences(str(path.relative_to(dataset)), before, after) if is_whole else []
        missed = [change for change in changes if not is_listed(change)]
        assert not missed, missed

    fuzz(use, share=1 / 4)


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
