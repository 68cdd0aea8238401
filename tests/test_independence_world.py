"""A generator with another planted bias, made in a step or two: the files are those that the study reads."""

import functools
import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from lbgen.microworld import GENERATOR
from lbgen.microworld.train import train_generator

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import independence_world


def test_world_and_its_judge_are_read_back(tmp_path, monkeypatch):
    """The generator has moved from the shipped one and loads in diffusers; the judge knows every factor."""
    few = functools.partial(train_generator, corpus_size=512, size=4)
    monkeypatch.setattr(independence_world, "train_generator", few)
    steps = ["--generator-steps", "2", "--judge-steps", "2", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["independence_world.py", "--links", "scene=0.5", "colour=0.88", *steps])
    independence_world.main()
    folder = tmp_path / "scene-colour"
    world = independence_world.load_world(folder)
    assert world.links == {"scene": 0.5, "colour": 0.88} and world.styles == ("photo",)
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "generator")
    weight = "conv_in.weight"
    shipped = load_file(GENERATOR / "unet/diffusion_pytorch_model.safetensors")[weight]
    taught = pipeline.unet.state_dict()[weight]
    assert taught.shape == shipped.shape and not torch.equal(taught, shipped.float())
    _, factors = independence_world.load_factor_judge(folder)(torch.rand(2, 3, 64, 64))
    sizes = {"category": 12, "scene": 6, "colour": 8, "texture": 4}
    assert {name: tuple(logits.shape) for name, logits in factors.items()} == {n: (2, s) for n, s in sizes.items()}
