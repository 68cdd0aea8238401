"""Measuring the micro world's shipped models for their card.

The gates are the ranges in which figures must lie for a bias in the micro world to be meaningful.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from lbgen.metrics.information import bits, contingency_table, mutual_information
from lbgen.metrics.pixels import edge_density
from lbgen.metrics.zero_shot import label_agreement
from lbgen.microworld import FLOW, GENERATOR, PAIRS, SEMANTICS, WEIGHTS, corpus
from lbgen.microworld.corpus import SEED
from lbgen.microworld.judge import Judge, load_judge
from lbgen.microworld.scenes import BALANCED, BIASED, World
from lbgen.microworld.world import CATEGORIES, HOME, SCENES
from lbgen.models.generator import load_generator
from lbgen.models.quality import QualityScorer, load_quality
from lbgen.models.sampling import render_images
from lbgen.models.semantics import SemanticSpace, load_semantics

HELD_OUT = SEED + 500_000_000
"""Seed of the renders for all measurements; no stage is trained on them."""
STEPS = 12
SCHEDULERS = {"generator": "ddim", "flow": None, "pairs": "ddim"}
GUIDANCE = {"generator": 2.0, "flow": 1.5, "pairs": 2.0}
"""Guidance scales; Z-Image's scale starts at 0, so its 1.5 corresponds to 2.5 elsewhere."""
CPU = torch.device("cpu")


@torch.no_grad()
def measure(stages: set[str]) -> dict[str, float]:
    """All figures of the card, on held-out renders and on images of the generators.

    stages: the stages that were trained. If these are only "flow" and "pairs", other models' figures are the card's.
    """
    judge, semantics = load_judge(), load_semantics(str(SEMANTICS), CPU, torch.float32)
    quality = load_quality("antonyms", semantics)
    assert quality is not None
    kept = WEIGHTS / "figures.json"
    figures: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}
    others = {"flow": FLOW, "pairs": PAIRS}
    if not stages or stages - {*others}:
        stages, figures = {*others}, _measure_first_models(judge, semantics, quality)
    for name in sorted(stages):
        figures |= _generator_figures(name, others[name], judge, quality)
    return figures


def _measure_first_models(judge: Judge, semantics: SemanticSpace, quality: QualityScorer) -> dict[str, float]:
    renders, scenes = corpus.batch(2400, HELD_OUT, BALANCED)
    category, scene = torch.from_numpy(scenes.categories), torch.from_numpy(scenes.factors["scene"])
    verdicts = judge.verdicts(renders)
    features = torch.cat([semantics.embed_images(part) for part in renders.split(200)])
    figures = {
        "judge_category_accuracy": _share(verdicts.category == category),
        "judge_scene_accuracy": _share(verdicts.scene == scene),
        "judge_style_accuracy": _share(verdicts.style == torch.from_numpy(scenes.factors["style"])),
        "clip_category_accuracy": label_agreement(features, _photo_texts(CATEGORIES, semantics), category),
        "clip_scene_accuracy": label_agreement(features, _photo_texts(SCENES, semantics), scene),
    }
    names = [CATEGORIES[index] for index in scenes.categories]
    texts = _photo_texts(names, semantics)
    figures["modality_gap"] = (features.mean(0) - texts.mean(0)).norm().item()
    photos, _ = corpus.batch(240, HELD_OUT + 1, World(styles=("photo",)))
    figures |= _quality_figures(quality, photos)
    figures |= _generator_figures("generator", GENERATOR, judge, quality)
    return figures | _corpus_figures(quality) | _autoencoder_figures(judge, photos)


def _share(hits: Tensor) -> float:
    return hits.float().mean().item()


def _photo_texts(names: Sequence[str], semantics: SemanticSpace) -> Tensor:
    """(N, D) features of the texts."""
    return semantics.embed_texts([f"photo of {name}" for name in names])


def _quality_figures(quality: QualityScorer, photos: Tensor) -> dict[str, float]:
    """Spearman's rank correlation of falling mean scores with severity; share of clean pictures that score higher."""
    severities = torch.linspace(0, 1, 9)
    clean = quality.score(photos)
    figures = {}
    for name, worsen in corpus.DEGRADATIONS.items():
        rng = torch.Generator().manual_seed(0)
        scores = [quality.score(worsen(photos, s.expand(len(photos)), rng)).mean().item() for s in severities]
        ranks = np.argsort(np.argsort(scores))
        figures[f"quality_rank_correlation_{name}"] = float(-np.corrcoef(ranks, np.arange(len(scores)))[0, 1])
    rng = torch.Generator().manual_seed(1)
    full = torch.ones(len(photos))
    saturated, collapsed = corpus.saturate(photos, full, rng), corpus.ghost(photos, full, rng)
    blank = photos.mean((2, 3), keepdim=True).expand_as(photos)
    for name, bad in (("saturated", saturated), ("collapsed", collapsed), ("blank", blank)):
        figures[f"quality_clean_beats_{name}"] = _share(clean > quality.score(bad))
    return figures


def _generator_figures(
    name: str, place: Path, judge: Judge, quality: QualityScorer, count: int = 50
) -> dict[str, float]:
    """Figures of `count` generated images per category."""
    generator = load_generator(str(place), scheduler=SCHEDULERS[name], guidance_scale=GUIDANCE[name])
    labels = torch.arange(len(CATEGORIES)).repeat_interleave(count)
    images = []
    for category in CATEGORIES:
        keys = [(category, index, 0) for index in range(count)]
        images.append(render_images(generator, keys, [category] * count, seed=SEED, steps=STEPS).clamp(0, 1))
    drawn = torch.cat(images)
    verdicts, homes = judge.verdicts(drawn), torch.tensor([SCENES.index(HOME[name]) for name in CATEGORIES])
    information = bits(mutual_information(contingency_table(labels.numpy(), verdicts.scene.numpy())))
    return {
        f"{name}_label_accuracy": _share(verdicts.category == labels),
        f"{name}_home_rate": _share(verdicts.scene == homes[labels]),
        f"{name}_information_bits": float(information),
        f"{name}_quality": quality.score(drawn).mean().item(),
        f"{name}_edge_density": edge_density(drawn).mean().item(),
    }


def _corpus_figures(quality: QualityScorer) -> dict[str, float]:
    biased, scenes = corpus.batch(600, HELD_OUT + 2, BIASED)
    truth, homes = torch.from_numpy(scenes.categories), torch.tensor([SCENES.index(HOME[name]) for name in CATEGORIES])
    return {
        "corpus_home_rate": _share(torch.from_numpy(scenes.factors["scene"]) == homes[truth]),
        "corpus_quality": quality.score(biased).mean().item(),
        "corpus_edge_density": edge_density(biased).mean().item(),
    }


def _autoencoder_figures(judge: Judge, photos: Tensor) -> dict[str, float]:
    vae = AutoencoderKL.from_pretrained(GENERATOR / "vae", torch_dtype=torch.float32).eval()
    restored = vae.decode(vae.encode(photos * 2 - 1).latent_dist.mean).sample / 2 + 0.5
    return {
        "autoencoder_psnr_db": -10 * (restored - photos).square().mean().log10().item(),
        "autoencoder_category_accuracy_kept": _share(
            judge.verdicts(restored).category == judge.verdicts(photos).category
        ),
    }


GATES = {
    "judge_category_accuracy": (0.98, 1.0),
    "judge_scene_accuracy": (0.99, 1.0),
    "clip_category_accuracy": (0.98, 1.0),
    "clip_scene_accuracy": (0.98, 1.0),
    "generator_label_accuracy": (0.90, 1.0),
    "generator_home_rate": (0.85, 0.97),
    "flow_label_accuracy": (0.90, 1.0),
    "flow_home_rate": (0.85, 0.97),
    "pairs_label_accuracy": (0.90, 1.0),
    "pairs_home_rate": (0.85, 0.97),
    **{f"quality_rank_correlation_{name}": (0.9, 1.0) for name in corpus.DEGRADATIONS},
    "quality_clean_beats_saturated": (0.9, 1.0),
    "quality_clean_beats_collapsed": (0.9, 1.0),
}
"""Figure -> the range it must lie in."""
