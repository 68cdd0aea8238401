"""The street on each family's miniature: align with every term, a kill, generate in parts, repair.

Sampling, gradients and refusals of a family are in its own test file.
"""

import json
import multiprocessing
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from miniatures import WRITERS
from safetensors.torch import load_file
from trajectories import images_of

from lbgen.alignment import loop
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.run import align
from lbgen.datasets import index
from lbgen.exports.config import ExportMergedConfig
from lbgen.exports.merged import export_merged
from lbgen.generation.config import GenerateConfig, VerifyConfig
from lbgen.generation.run import generate
from lbgen.generation.verify import verify
from lbgen.models.checkpoints.suited import suited_settings
from lbgen.models.generator import load_generator
from lbgen.models.registry import ADAPTER_FILE

FAMILIES = sorted({*WRITERS} - {"sd"})
"""All but Stable Diffusion 1.x and 2.x, whose miniature the other tests use."""
TERMS = ("entire", "individual", "quality", "independence")


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WRITERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def aligned(folder: Path, tiny_config: AlignConfig, tmp_path_factory: pytest.TempPathFactory) -> AlignConfig:
    """Three updates, never interrupted."""
    config = replace(
        tiny_config,
        **suited_settings(str(folder)),
        generator=str(folder),
        output=str(tmp_path_factory.mktemp("aligned") / "run"),
        max_steps=3,
        checkpoint_every=1,
        independence_weight=1.0,
        independence_bank=16,
    )
    align(config)
    return config


def adapter_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / ADAPTER_FILE)


def test_every_term_reaches_the_adapter(aligned: AlignConfig) -> None:
    """By the norms that a run measures at its start, and by the adapter's B, which starts at zero."""
    first = json.loads((aligned.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert all(first["gradient_norms"][name] > 0 for name in TERMS)
    assert all(tensor.any() for name, tensor in adapter_of(aligned.folder).items())


def test_the_adapters_card_says_how_diffusers_makes_its_images(aligned: AlignConfig) -> None:
    """The code on it runs, on smaller images than its pipeline's default."""
    card = (aligned.folder / "adapter/README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    code = code.replace("'GENERATOR'", repr(aligned.generator))
    code = code.replace('"ADAPTER"', repr(str(aligned.folder / "adapter")))
    code = code.replace("num_inference_steps=3", "num_inference_steps=3, height=32, width=32")
    drawn: dict = {}
    exec(code, drawn)
    assert drawn["image"].size == (32, 32)


def test_the_merged_checkpoint_makes_the_adapters_images(aligned: AlignConfig, tmp_path: Path) -> None:
    merged = export_merged(ExportMergedConfig(str(aligned.folder), str(tmp_path / "merged")))
    settings = {"scheduler": "native", "guidance_scale": aligned.guidance_scale}
    ours, theirs = (load_generator(str(place), **settings) for place in (merged, aligned.generator))
    theirs.load_adapter(aligned.folder / "adapter")
    torch.testing.assert_close(images_of(ours), images_of(theirs), rtol=1e-3, atol=1e-4)


def align_until_killed(config: AlignConfig) -> None:
    append = loop.append_line

    def killed(path: Path, record: dict) -> None:
        append(path, record)
        if record["step"] == 2 and "loss" in record:
            os.kill(os.getpid(), signal.SIGKILL)

    loop.append_line = killed
    align(config)


def test_a_killed_run_ends_bit_identical(aligned: AlignConfig, tmp_path: Path) -> None:
    config = replace(aligned, output=str(tmp_path / "run"))
    process = multiprocessing.get_context("fork").Process(target=align_until_killed, args=(config,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    align(config)
    ours, theirs = adapter_of(config.folder), adapter_of(aligned.folder)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def images(folder: Path) -> list[tuple[str, str]]:
    return sorted((row["key"], row["sha256"]) for row in index.read_index(folder).to_pylist())


def test_a_dataset_is_the_same_in_parts_and_after_a_repair(
    aligned: AlignConfig, config: GenerateConfig, tmp_path: Path, warm_processes: None
) -> None:
    """With the adapter, screened; the last part by two processes; verify finds it whole, and what is then damaged."""
    whole = replace(
        config, **suited_settings(aligned.generator), generator=aligned.generator,
        adapter=aligned.folder / "adapter", output=str(tmp_path / "whole"),
        screen=("blank",),
    )  # fmt: skip
    generate(whole)
    made = images(whole.folder)
    assert len(made) == 12 and len({sha for _, sha in made}) == 12
    parts = replace(whole, output=str(tmp_path / "parts"))
    for number, workers in ((1, None), (0, 2)):
        generate(replace(parts, shard_of=f"{number}/2", workers=workers))
    assert images(parts.folder) == made
    assert not verify(VerifyConfig(directory=whole.output)).damaged
    victim = next(whole.folder.glob("train/*/*.png"))
    victim.write_bytes(victim.read_bytes()[:-1])
    assert verify(VerifyConfig(directory=whole.output)).damaged
    assert not verify(VerifyConfig(directory=whole.output, repair=True)).damaged
    assert images(whole.folder) == made
