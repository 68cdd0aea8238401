"""A generator with another planted bias, made in a step or two: the files are those that the study reads."""

import functools
import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from lbgen.microworld import GENERATOR
from lbgen.microworld.train import train_generator

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from benchmarks.independence import planted_world  # noqa: E402


def test_world_and_its_judge_are_read_back(tmp_path, monkeypatch):
    """The generator has moved from the shipped one and loads in diffusers; the judge knows every factor."""
    few = functools.partial(train_generator, corpus_size=512, size=4)
    monkeypatch.setattr(planted_world, "train_generator", few)
    steps = ["--generator-steps", "2", "--judge-steps", "2", "--output", str(tmp_path)]
    planted_world.main(["--links", "scene=0.5", "colour=0.88", *steps])
    folder = tmp_path / "scene-colour"
    world = planted_world.load_world(folder)
    assert world.links == {"scene": 0.5, "colour": 0.88} and world.styles == ("photo",)
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "generator")
    weight = "conv_in.weight"
    shipped = load_file(GENERATOR / "unet/diffusion_pytorch_model.safetensors")[weight]
    taught = pipeline.unet.state_dict()[weight]
    assert taught.shape == shipped.shape and not torch.equal(taught, shipped.float())
    _, factors = planted_world.load_factor_judge(folder)(torch.rand(2, 3, 64, 64))
    sizes = {"category": 12, "scene": 6, "colour": 8, "texture": 4}
    assert {name: tuple(logits.shape) for name, logits in factors.items()} == {n: (2, s) for n, s in sizes.items()}
