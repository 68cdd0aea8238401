"""A generator with another planted bias, and its judge: `python benchmarks/independence/planted_world.py --links
colour=0.88`.

The shipped generator is trained further on photographs that have only the given links, and is written to
`runs/worlds/<links>` for `independence/study.py --world`. A judge learns category, scene, colour and texture from
renders without links; `runs/worlds/judge` serves all worlds. Resumable; about 35 minutes of a CPU core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import yaml
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from lbgen.microworld import GENERATOR
from lbgen.microworld.architectures import Denoiser
from lbgen.microworld.judge import Judge
from lbgen.microworld.scenes import BIASED, World
from lbgen.microworld.train import DEVICE, train_generator, train_judge

JUDGED = ("scene", "colour", "texture")
JUDGE = Path("judge", "judge.safetensors")


def load_world(folder: Path | None) -> World:
    """The world that the folder's generator learned from; without a folder, the shipped generator's world."""
    if folder is None:
        return BIASED
    return World(links=yaml.safe_load((folder / "world.yaml").read_text())["links"], styles=("photo",))


def load_factor_judge(folder: Path) -> Judge:
    """The judge beside the folder, which serves all worlds there."""
    judge = Judge(JUDGED)
    judge.load_state_dict(load_file(folder.parent / JUDGE))
    return judge.eval().requires_grad_(False)


def make_generator(folder: Path, world: World, steps: int) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(GENERATOR, torch_dtype=torch.float32)
    start = Denoiser(pipeline.tokenizer)
    start.unet.load_state_dict(pipeline.unet.state_dict())
    start.text_encoder.load_state_dict(pipeline.text_encoder.state_dict())
    vae = pipeline.vae.to(DEVICE)
    taught = train_generator(folder, steps, vae, world=world, start=start, scaling=vae.config.scaling_factor).cpu()
    pipeline.unet, pipeline.text_encoder = taught.unet, taught.text_encoder
    pipeline.to("cpu").save_pretrained(folder / "generator")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--links", nargs="+", required=True, metavar="FACTOR=STRENGTH")
    parser.add_argument("--output", type=Path, default=Path("runs/worlds"))
    parser.add_argument("--generator-steps", type=int, default=1500)
    parser.add_argument("--judge-steps", type=int, default=1500)
    arguments = parser.parse_args(argv)
    links = {factor: float(strength) for factor, strength in (link.split("=") for link in arguments.links)}
    world = World(links=links, styles=("photo",))
    folder, judge = arguments.output / "-".join(links), arguments.output / JUDGE
    folder.mkdir(parents=True, exist_ok=True)
    judge.parent.mkdir(exist_ok=True)
    if not judge.exists():
        save_file(train_judge(judge.parent, arguments.judge_steps, JUDGED).cpu().state_dict(), judge)
    make_generator(folder, world, arguments.generator_steps)
    (folder / "world.yaml").write_text(yaml.safe_dump({"links": links}, sort_keys=False))


if __name__ == "__main__":
    main()
