"""Runs, adapters and models, changed at random: read, or refused in one line."""

import copy
import json
import random
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from hostile import changed, changed_file, damaged, fuzz, replaced
from safetensors import safe_open
from safetensors.torch import load_file, save

from lbgen.alignment import checkpoint, run
from lbgen.configuration.saved import ensure_same
from lbgen.models import adapter
from lbgen.models.families.stable_diffusion import StableDiffusion
from lbgen.models.generator import load_generator
from lbgen.models.loading import loading
from lbgen.models.semantics import load_semantics
from lbgen.runs import identity
from lbgen.training.metrics import drop_lines_after
from lbgen.vocabulary.vocabulary import load_vocabulary


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
            drop_lines_after(finished.folder / "metrics.jsonl", 1)

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
