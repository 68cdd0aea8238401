"""The independence term's bank, and whole runs with it."""

import collections
import dataclasses
import hashlib
import json
import math
import os
import subprocess
from pathlib import Path

import pytest
import torch
from alignment_runs import ADAPTER, TERM, lines, state_of
from safetensors.torch import load_file

from lbgen.alignment import checkpoint, run
from lbgen.alignment.independence.bank import bank_images, bank_path, load_bank
from lbgen.alignment.independence.term import Independence
from lbgen.configuration.saved import save
from lbgen.errors import UserError
from lbgen.runs.identity import Identity
from lbgen.vocabulary.vocabulary import load_vocabulary

# ---- the bank ----


def test_bank_images_have_several_images_a_category_from_2_to_21000_categories():
    for categories in (2, 12, 1000, 21_000):
        counts = collections.Counter(category for category, _ in bank_images(512, categories))
        assert min(counts.values()) >= 8 and len(counts) == min(categories, 64) and max(counts) < categories
        assert len(set(bank_images(512, categories))) == 512


def test_two_processes_make_the_bank_of_one_and_a_killed_one_goes_on(tmp_path):
    """Chunks of 16: the third is never asked for twice."""
    images, asked = bank_images(40, 3), []

    def drawn(chunk):
        asked.append(chunk[0])
        if len(asked) == 3:
            raise KeyboardInterrupt
        return torch.tensor([[float(category), float(index)] for category, index in chunk])

    with pytest.raises(KeyboardInterrupt):
        load_bank(tmp_path / "a.safetensors", images, (0, 1), drawn, lambda: None)
    whole = load_bank(tmp_path / "a.safetensors", images, (0, 1), drawn, lambda: None)
    assert asked == [images[0], images[16], images[32], images[32]] and not (tmp_path / "a").exists()
    with pytest.raises(
        UserError, match="00001.safetensors: another process made it on another disk; choose an --output"
    ):
        load_bank(tmp_path / "b.safetensors", images, (0, 2), drawn, lambda: None)
    with pytest.raises(FileNotFoundError):  # it makes its own, and waits for the first to merge
        load_bank(tmp_path / "b.safetensors", images, (1, 2), drawn, lambda: None)
    halves = load_bank(tmp_path / "b.safetensors", images, (0, 2), drawn, lambda: None)
    assert all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))
    assert whole[0].tolist() == [list(image) for image in images] and whole[1].tolist() == [c for c, _ in images]


# ---- whole runs ----


def test_a_run_without_the_term_makes_no_bank_and_has_no_column(fresh):
    config = fresh(max_steps=1)
    run.align(config)
    assert not list(config.folder.glob("bank*"))
    assert "independence" not in lines(config.folder / "metrics.jsonl")[1]
    assert state_of(config).independence is None


def test_a_resumed_run_equals_one_that_was_longer_from_the_start(fresh, tmp_path):
    """Adapter and metrics, with the memory wrapped round and a warm-up; the bank is not made again.

    The checkpoint is given what earlier versions kept of the controller of label agreement.
    """
    term = {**TERM, "independence_thumbnail": 2, "discriminator_warmup_steps": 1}
    short, long = fresh(**term, max_steps=3), fresh(**term, max_steps=5, output=tmp_path / "long")
    run.align(short)
    (bank,) = short.folder.glob("bank*")
    made = bank.stat().st_mtime_ns
    add_to_state(checkpoint.newest(short.folder), base_agreement=0.5, agreement=0.5, share=1.0)
    run.align(dataclasses.replace(short, max_steps=5))
    run.align(long)
    assert bank.stat().st_mtime_ns == made
    ours, theirs = load_file(short.folder / ADAPTER), load_file(long.folder / ADAPTER)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    numbers = [lines(c.folder / "metrics.jsonl") for c in (short, long)]
    for line in (*numbers[0], *numbers[1]):
        line.pop("images_per_second", None)
    assert numbers[0] == numbers[1]
    assert numbers[0][-1]["independence"] != 0


def add_to_state(folder, **buffers):
    """More tensors of the independence term in a checkpoint, as if the run had saved them."""
    progress, state = checkpoint.saved_progress(folder), checkpoint.load_tensors(folder, "cpu")
    state["independence"] |= {name: torch.tensor(value) for name, value in buffers.items()}
    checkpoint.save_tensors(folder, state)
    (folder / checkpoint.MARKER).unlink()
    checkpoint.mark_complete(folder, progress)


def test_two_processes_give_the_bank_and_the_adapter_of_one(fresh, tmp_path, warm_python):
    """The bank bit for bit, the adapter within the tolerance of two half batches."""
    whole = fresh(**TERM, independence_thumbnail=2, max_steps=3)
    run.align(whole)
    halves = dataclasses.replace(whole, output=tmp_path / "halves", batch_size=1)
    save(halves, tmp_path / "recipe.yaml")
    launch = [warm_python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "lbgen"]
    result = subprocess.run(
        [*launch, "align", "--recipe", str(tmp_path / "recipe.yaml")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (ours,), (theirs,) = halves.folder.glob("bank*"), whole.folder.glob("bank*")
    assert ours.name == theirs.name and ours.read_bytes() == theirs.read_bytes()
    a, b = load_file(halves.folder / ADAPTER), load_file(whole.folder / ADAPTER)
    assert all(torch.allclose(a[name], b[name], atol=2e-5) for name in b)


def test_a_bank_of_other_settings_is_not_taken_for_this_runs(fresh, tmp_path):
    """Each setting that changes the images, or what is read from them, gives the file a name of its own."""
    config = fresh(**TERM)
    (tmp_path / "two.txt").write_text("cat\ndog\n")
    others = [
        {"seed": 1}, {"independence_bank": 24}, {"independence_thumbnail": 2}, {"prompt_template": "a {name}"},
        {"scheduler": "ddim"}, {"steps": 4}, {"guidance_scale": 3.0}, {"guidance_rescale": 0.5},
        {"precision": "bf16"}, {"vocabulary": str(tmp_path / "two.txt")},
    ]  # fmt: skip

    def name(**changes):
        changed = dataclasses.replace(config, **changes)
        return bank_path(changed, load_vocabulary(changed.vocabulary)).name

    assert len({name(), *(name(**changes) for changes in others)}) == 1 + len(others)
    assert name(independence_weight=2.0, max_steps=9, learning_rate=1.0) == name()


def test_the_bank_of_a_run_that_an_earlier_version_began_has_the_name_it_gave(fresh):
    """Its rule written out: a digest of settings, categories and the weights, in this order."""
    config = fresh(**TERM)
    weights = {}
    for name in ("generator", "semantics"):
        folder = Path(getattr(config, name))
        files = [(path, hashlib.sha256(path.read_bytes())) for path in sorted(folder.rglob("*.safetensors"))]
        listed = "\n".join(f"{path.relative_to(folder)}\t{digest.hexdigest()}" for path, digest in files)
        weights[name] = hashlib.sha256(listed.encode()).hexdigest()
    names = hashlib.sha256(b"cat\tcat\ndog\tdog\nant\tant\nbee\tbee\ncup\tcup").hexdigest()
    settings = [0, 16, config.independence_thumbnail, "{name}", "ddpm", 3, 2.0, 0.0, "fp32"]
    digest = hashlib.sha256(json.dumps([*settings, names, *weights.values()]).encode()).hexdigest()
    vocabulary = load_vocabulary(config.vocabulary)
    assert bank_path(config, vocabulary, Identity(weights, ())).name == f"bank-{digest[:12]}.safetensors"
    assert bank_path(config, vocabulary).name != f"bank-{digest[:12]}.safetensors"


def test_texts_that_leave_no_rest_are_refused_before_the_bank_is_made(fresh, tmp_path):
    """More names than the miniature's features have channels."""
    (tmp_path / "many.txt").write_text("".join(f"thing{number}\tthing {number}\n" for number in range(40)))
    config = fresh(**TERM, independence_span=1.0, vocabulary=str(tmp_path / "many.txt"))
    with pytest.raises(UserError, match="--independence-span 1: the texts span"):
        run.align(config)
    assert not list(config.folder.glob("**/*"))


def test_a_run_of_two_categories_in_bf16_with_one_image_an_update(fresh, tmp_path):
    """The least of everything: all that is logged is a number, and the adapter moves."""
    (tmp_path / "two.txt").write_text("cat\ndog\n")
    config = fresh(**TERM, vocabulary=str(tmp_path / "two.txt"), precision="bf16",
                   batch_size=1, max_steps=4, checkpoint_every=4, evaluate_every=0)  # fmt: skip
    run.align(config)
    rows = lines(config.folder / "metrics.jsonl")[1:]
    assert all(math.isfinite(row["independence"]) and row["independence"] != 0 for row in rows)
    weights = load_file(config.folder / ADAPTER)
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    assert any(weight.abs().sum() > 0 for name, weight in weights.items() if "lora_B" in name or ".up." in name)


def test_a_silent_term_stops_the_run_by_name(fresh, monkeypatch):
    rest = Independence.residuals
    monkeypatch.setattr(Independence, "residuals", lambda self, features: rest(self, features.detach()))
    with pytest.raises(UserError, match=r"--independence-weight 1.0: the independence term's gradient .* is 0"):
        run.align(fresh(**TERM))
