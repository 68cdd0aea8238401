"""What identifies a model is what the libraries load of its folder: compared with what they fail without."""

import hashlib
import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline

from lbgen.errors import UserError
from lbgen.models.generator import load_generator
from lbgen.models.loading import read_config
from lbgen.models.semantics import load_semantics
from lbgen.runs.identity import Identity, model_identity, weights_sha256


def of_all_weights(folder: Path) -> str:
    """The rule of earlier versions, written out."""
    files = sorted(folder.rglob("*.safetensors"))
    lines = [f"{path.relative_to(folder)}\t{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def add_unused_files(folder: Path) -> None:
    """What checkpoints on the hub have beside the files that are loaded."""
    StableDiffusionPipeline.from_pretrained(folder).save_pretrained(folder.with_name("half"), variant="fp16")
    for path in folder.with_name("half").rglob("*.fp16.safetensors"):
        shutil.copy(path, folder / path.relative_to(folder.with_name("half")))
    for name in ("README.md", "v1-5.ckpt", "v1-5.safetensors", "unet/diffusion_pytorch_model.bin", "notes.txt"):
        (folder / name).write_text("of no use")
    (folder / "onnx").mkdir()
    (folder / "onnx/model.safetensors").write_text("of no use")


@pytest.fixture
def generator(tiny_sd_folder, tmp_path) -> Path:
    folder = Path(shutil.copytree(tiny_sd_folder, tmp_path / "generator"))
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker/model.safetensors").write_text("not loaded for its images")
    return folder


@pytest.mark.parametrize("kind", ["generator", "semantics"])
def test_every_file_that_loading_needs_counts_and_no_unused_one(kind, generator, tiny_clip_folder, tmp_path):
    """Each file in turn is cut to nothing: where loading then fails, the hash must have changed."""
    if kind == "generator":
        folder, load = generator, load_generator
        before = weights_sha256(str(folder))
        add_unused_files(folder)
        assert weights_sha256(str(folder)) == before
    else:
        folder, load = Path(shutil.copytree(tiny_clip_folder, tmp_path / "clip")), load_semantics
        before = weights_sha256(str(folder))
    needed = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        path.write_bytes(b"")
        try:
            load(str(folder))
        except UserError:
            needed.append(path.name)
            assert weights_sha256(str(folder)) != before, path
        path.write_bytes(content)
    least = {"generator": 9, "semantics": 4}[kind]  # three weights and configurations, index, scheduler, tokenizer
    assert len(needed) >= least and weights_sha256(str(folder)) == before


def test_weights_in_several_files_count(generator):
    """Split by diffusers."""
    pipeline = StableDiffusionPipeline.from_pretrained(generator, safety_checker=None)
    shutil.rmtree(generator / "unet")
    pipeline.unet.save_pretrained(generator / "unet", max_shard_size="50KB")
    shards = sorted((generator / "unet").glob("*.safetensors"))
    assert len(shards) > 1 and load_generator(str(generator))
    hashes = {weights_sha256(str(generator))}
    for path in shards:
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        hashes.add(weights_sha256(str(generator)))
    assert len(hashes) == len(shards) + 1


def test_links_to_files_and_to_parts_are_followed(generator, tmp_path):
    """The hub's cache holds links to files; users link whole parts."""
    cache, linked = tmp_path / "blobs", tmp_path / "linked"
    shutil.copytree(generator, cache)
    linked.mkdir()
    for entry in generator.iterdir():
        (linked / entry.name).symlink_to(entry)
    (linked / "vae").unlink()
    (linked / "vae").mkdir()
    for path in (cache / "vae").iterdir():
        (linked / "vae" / path.name).symlink_to(path)
    assert weights_sha256(str(linked)) == weights_sha256(str(generator))
    (generator / "unet/config.json").write_text("{}")
    assert weights_sha256(str(linked)) != weights_sha256(str(cache))


def test_the_safety_checker_counts_where_it_is_loaded(generator):
    index = generator / "model_index.json"
    part = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index.write_text(json.dumps(json.loads(index.read_text()) | {"safety_checker": part}))

    def hashes() -> tuple[str | None, str | None]:
        return weights_sha256(str(generator)), weights_sha256(str(generator), without=("safety_checker",))

    whole, without = hashes()
    (generator / "safety_checker/model.safetensors").write_text("another")
    assert hashes()[0] != whole and hashes()[1] == without


def test_a_hash_of_an_earlier_version_is_compared_by_its_rule(generator):
    recorded = of_all_weights(generator)
    assert weights_sha256(str(generator), recorded) == recorded != weights_sha256(str(generator))
    now = weights_sha256(str(generator))
    assert weights_sha256(str(generator), now) == now


def test_pipes_in_a_model_folder_are_not_waited_for(tmp_path):
    """In place of a configuration, and beside the weights that are hashed by the rule of earlier versions."""
    os.mkfifo(tmp_path / "other.safetensors")
    (tmp_path / "unet").mkdir()
    os.mkfifo(tmp_path / "unet/config.json")
    assert model_identity(str(tmp_path)) == hashlib.sha256().hexdigest()
    with pytest.raises(UserError, match="config.json: it is not a regular file"):
        read_config(str(tmp_path), "unet")


@pytest.mark.parametrize(
    "then, now, goes_on", [(None, "commit 1a", True), ("commit 1a", None, False), (None, "v2:1a", False)]
)
def test_a_commit_that_an_earlier_version_did_not_know_is_taken(then, now, goes_on):
    recorded, present = (Identity({"generator": value}, ()) for value in (then, now))
    with nullcontext() if goes_on else pytest.raises(UserError, match="generator_sha256"):
        present.ensure_same_hashes(recorded, "out")
