"""Making the images of a set and training backbones on them, with lbgen's own stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

import lbgen
from lbgen.alignment.config import AlignConfig
from lbgen.evaluation.transfer.config import TransferConfig
from lbgen.generation.config import GenerateConfig
from lbgen.microworld.scenes import BIASED, render
from lbgen.microworld.world import CATEGORIES
from lbgen.pretraining.config import PretrainConfig
from lbgen.quickstart.run import QuickstartConfig, generate_configs, screened
from lbgen.reproduction.config import SEEDS, UNSEEN_FOLDER, Architecture, ReproduceConfig
from lbgen.reproduction.dense.measuring import dense_config
from lbgen.reproduction.held_out import PHOTOS, write_images
from lbgen.reproduction.sets import SETS, Objective, SetName

NOISE = 1000
"""Added to a seed for the noise of its images, which is the same in all its sets and in no alignment."""
RENDERED = 700_000_000
"""Added to a seed for its renders."""


def seed_folder(config: ReproduceConfig, seed: int) -> Path:
    return config.folder / SEEDS / str(seed)


# ---- the generator ----


def align_config(config: ReproduceConfig, objective: Objective, seed: int) -> AlignConfig:
    recipes: dict[Objective, str] = {
        "paper": config.paper_recipe,
        "released-code": config.released_code_recipe,
        "independence": config.independence_recipe,
    }
    asked = {} if config.max_steps is None else {"max_steps": config.max_steps}
    output = seed_folder(config, seed) / "align" / objective
    return AlignConfig.from_recipe(
        recipes[objective], output=output, seed=seed, logger="none", evaluate_every=0, **asked
    )


def align(config: ReproduceConfig, objective: Objective, seed: int) -> None:
    """Align an adapter, which is shared by all sets of the seed that need it."""
    lbgen.align(align_config(config, objective, seed))


# ---- images ----


def images_folder(config: ReproduceConfig, name: SetName, seed: int) -> Path:
    return seed_folder(config, seed) / "images" / name


def make_images(config: ReproduceConfig, name: SetName, seed: int) -> None:
    """Make a dataset folder; all sets have the same number of images per category."""
    if SETS[name].renders is None:
        lbgen.generate(generate_config(config, name, seed))
    else:
        write_renders(config, name, seed)


def generate_config(config: ReproduceConfig, name: SetName, seed: int) -> GenerateConfig:
    """The config of a set. All sets of a seed have the same noise, and the trajectory of the paper's recipe or of
    their own adapter.
    """
    way = SETS[name]
    align = align_config(config, way.objective or "paper", seed)
    asked = QuickstartConfig(images_per_category=config.images_per_category, seed=NOISE + seed)
    plain = generate_configs(asked, align)["diverse_prompts" if way.diverse_prompts else "base"]
    adapter = align.folder / "adapter" if way.objective else None
    made = replace(plain, output=str(images_folder(config, name, seed)), adapter=adapter)
    return screened(made, align) if way.screened else made


def write_renders(config: ReproduceConfig, name: SetName, seed: int) -> None:
    """An image folder of drawn photographs."""
    categories = np.repeat(np.arange(len(CATEGORIES)), config.images_per_category)
    drawn = render(categories, RENDERED + seed, BIASED if SETS[name].renders == "biased" else PHOTOS)
    write_images(images_folder(config, name, seed), drawn.images, [CATEGORIES[category] for category in categories])


# ---- backbones ----


def pretrain_config(config: ReproduceConfig, name: SetName, architecture: Architecture, seed: int) -> PretrainConfig:
    """The config for training on all images of the set; the last epoch is used, so that no test chooses anything."""
    recipe = config.resnet_recipe if architecture == "resnet" else config.vit_recipe
    asked = {} if config.epochs is None else {"epochs": config.epochs, "warmup_epochs": 0}
    output = seed_folder(config, seed) / "backbones" / f"{name}-{architecture}"
    return PretrainConfig.from_recipe(recipe, output=output, seed=seed, held_out=0.0, workers=0, logger="none", **asked)


def pretrain(config: ReproduceConfig, name: SetName, architecture: Architecture, seed: int) -> Path:
    """The run folder of a backbone."""
    asked = pretrain_config(config, name, architecture, seed)
    lbgen.pretrain(images_folder(config, name, seed), asked)
    return asked.folder


def transfer_configs(config: ReproduceConfig, output: Path) -> list[TransferConfig]:
    """The configs of the linear probes; few-shot only on the unseen categories, because draws take most of the time."""
    unseen = TransferConfig(
        output=str(output / UNSEEN_FOLDER),
        datasets=(str(config.folder / UNSEEN_FOLDER),),
        shots=config.shots,
        seeds=config.draws,
        workers=0,
    )
    if not config.datasets:
        return [unseen]
    return [unseen, replace(unseen, output=str(output / "others"), datasets=config.datasets, shots=())]


def ensure_stages(config: ReproduceConfig) -> None:
    """Refuse missing recipes and values that a stage does not accept, before anything is made."""
    for name in config.sets:
        if SETS[name].objective:
            align_config(config, SETS[name].objective, 0)  # type: ignore[arg-type]  # it is one of the objectives
    for architecture in config.architectures:
        pretrain_config(config, config.sets[0], architecture, 0)
    transfer_configs(config, config.folder)
    for method in config.dense:
        dense_config(config, method, 0, config.folder)
