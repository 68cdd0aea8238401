"""A dataset, a run and an audit's cache begun by an earlier version go on with this one (earlier/README.md)."""

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lbgen.alignment.config import AlignConfig
from lbgen.alignment.run import align
from lbgen.audit.comparison import open_cache
from lbgen.audit.config import AuditConfig
from lbgen.audit.run import audit
from lbgen.configuration.recipes import resolve
from lbgen.configuration.yaml_lines import read_yaml, yaml_text
from lbgen.datasets import index
from lbgen.generation.config import GenerateConfig
from lbgen.generation.run import generate
from lbgen.generation.verify import verify
from lbgen.runs import atomic, identity

EARLIER = Path(__file__).with_name("earlier")


@pytest.fixture
def earlier(tmp_path, monkeypatch) -> Path:
    """A copy, as if made with the libraries that are installed now."""
    folder = Path(shutil.copytree(EARLIER, tmp_path / "earlier"))
    record = folder / "half/dataset.yaml"
    content = read_yaml(record)
    content["made_with"]["versions"] = list(identity.versions())
    record.write_text(yaml_text(content))
    monkeypatch.chdir(folder)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): atomic.sha256(path) for path in folder.rglob("*") if path.is_file()}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


GENERATE = {
    "generator": "microworld", "vocabulary": "names.txt", "images_per_category": 3, "shard_size": 4,
    "scheduler": "ddim", "steps": 2, "batch_size": 2, "seed": 3, "screen": ("label", "duplicate"),
    "screen_semantics": "microworld", "label_top_k": 12, "duplicate_bits": 0,
}  # fmt: skip
ALIGN = {
    "vocabulary": "names.txt", "rank": 1, "alpha": 1.0, "lora_targets": ("to_q",), "max_steps": 4, "batch_size": 2,
    "steps": 3, "differentiated_steps": 1, "checkpoint_every": 2, "evaluate_every": 0, "evaluation_images": 2,
    "discriminator_hidden": 4, "logger": "none", "seed": 5,
}  # fmt: skip


def test_a_half_finished_dataset_is_finished(earlier):
    """What was there stays to the byte; what is added is what the earlier version added, to rounding of this CPU."""
    before = hashes(earlier / "half/train") | hashes(earlier / "half/index")
    assert generate(GenerateConfig(output=earlier / "half", **GENERATE)).finished
    after = hashes(earlier / "half/train") | hashes(earlier / "half/index")
    kept = {name: value for name, value in before.items() if not name.startswith("train-")}
    assert kept.items() <= after.items()
    whole, now = (index.read_index(earlier / name).to_pylist() for name in ("whole", "half"))
    exact = [name for name in whole[0] if name not in ("sha256", "label_probability", "duplicate_cosine")]
    assert [[row[name] for name in exact] for row in now] == [[row[name] for name in exact] for row in whole]
    for path in (EARLIER / "whole/train").rglob("*.png"):
        assert np.abs(pixels(path) - pixels(earlier / "half" / path.relative_to(EARLIER / "whole"))).max() <= 1
    assert verify(earlier / "half").damaged == ()


def test_a_stopped_run_goes_on(earlier):
    """To the adapter of the run that the earlier version did not stop."""
    result = align(resolve(AlignConfig, "microworld", {"output": earlier / "run", **ALIGN}))
    assert result.steps == 4
    name = "pytorch_lora_weights.safetensors"
    ended, truth = load_file(result.adapter / name), load_file(EARLIER / "run-whole" / name)
    assert ended.keys() == truth.keys()
    for key, value in truth.items():
        assert torch.allclose(ended[key], value, rtol=1e-4, atol=1e-6), key


def test_an_audits_cache_of_another_kind_is_neither_read_nor_changed(earlier):
    """Its rows hold no pictures of today's size. The figures are those of an audit without any cache."""
    (cache,) = (earlier / "audit/cache").iterdir()
    before = cache.read_bytes()
    for output in ("audit", "fresh"):
        audit([earlier / "half"], AuditConfig(output=earlier / output, semantics="microworld"))
    assert len(list((earlier / "audit/cache").glob("*.rows"))) == 2 and cache.read_bytes() == before
    assert (earlier / "audit/measures.json").read_text() == (earlier / "fresh/measures.json").read_text()


def test_a_vision_models_features_are_known_again(tmp_path):
    """By the name that the earlier version gave their cache: what is in it depends on nothing that has changed."""
    model = SimpleNamespace(where=str(tmp_path / "model"), side=8, dimension=4)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.safetensors").write_bytes(b"weights")
    name = f"features, version 3, {identity.model_identity(model.where)}, side 8"
    dtype = np.dtype([("key", np.uint8, (32,)), ("features", np.float16, (4,))])
    expected = hashlib.sha256(f"{name}\n{dtype.descr}".encode()).hexdigest()[:16]
    assert open_cache(tmp_path / "cache", model).path.name == f"seen-{expected}.rows"
