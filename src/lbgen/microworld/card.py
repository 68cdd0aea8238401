"""Write the shipped weights and measure them: the last part of train.py, or `python -m lbgen.microworld.card`.

The gates are the ranges in which figures must lie, so that a bias measured in the micro world means something.
"""

from __future__ import annotations

import argparse
import json
import math
from hashlib import sha256 as digest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPImageProcessor

from lbgen.metrics.information import bits, contingency_table, mutual_information
from lbgen.metrics.pixels import edge_density
from lbgen.microworld import GENERATOR, SEMANTICS, WEIGHTS, corpus
from lbgen.microworld.architectures import Denoiser, autoencoder, noise_scheduler, semantic_model, tokenizer
from lbgen.microworld.corpus import SEED
from lbgen.microworld.judge import Judge, load_judge
from lbgen.microworld.scenes import BALANCED, BIASED, World
from lbgen.microworld.world import CATEGORIES, HOME, SCENES
from lbgen.models.generator import load_generator
from lbgen.models.quality import QualityScorer, load_quality
from lbgen.models.sampling import render_images
from lbgen.models.semantics import SemanticSpace, load_semantics

HELD_OUT = SEED + 500_000_000
"""Seed of the renders that everything is measured on; no stage trains on them."""
STEPS, GUIDANCE = 12, 2.0
CPU = torch.device("cpu")


def write_weights(folder: Path) -> None:
    """Write the models of the checkpoints in `folder` as fp16 safetensors into the package."""
    judge = Judge()
    judge.load_state_dict(_trained(folder, "judge")["module"])
    half = {name: value.half() if value.is_floating_point() else value for name, value in judge.state_dict().items()}
    WEIGHTS.mkdir(exist_ok=True)
    save_file(half, WEIGHTS / "judge.safetensors")

    words = tokenizer()
    semantics = semantic_model(words)
    semantics.load_state_dict(_trained(folder, "semantics")["averaged"])
    semantics.half().save_pretrained(SEMANTICS)
    words.save_pretrained(SEMANTICS)
    plain = {"do_normalize": True, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    size = semantics.config.vision_config.image_size
    CLIPImageProcessor(size={"shortest_edge": size}, crop_size=size, **plain).save_pretrained(SEMANTICS)

    vae, denoiser, generator = autoencoder(), Denoiser(words), _trained(folder, "generator")
    vae.load_state_dict(_trained(folder, "autoencoder")["averaged"])
    with np.load(folder / "latents.npz") as arrays:
        vae.register_to_config(scaling_factor=float(arrays["scaling_factor"]))
    denoiser.load_state_dict(generator["averaged"])
    StableDiffusionPipeline(
        vae=vae.half(), text_encoder=denoiser.text_encoder.half(), tokenizer=words, unet=denoiser.unet.half(),
        scheduler=DDIMScheduler.from_config(noise_scheduler().config, clip_sample=False, set_alpha_to_one=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(GENERATOR)  # fmt: skip
    for part in (SEMANTICS, GENERATOR / "text_encoder"):
        _load_in_float32(part / "config.json")


def _load_in_float32(path: Path) -> None:
    """Make transformers load the fp16 weights in float32 by default, as diffusers does; mixed precisions do not run."""
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}, indent=2, sort_keys=True) + "\n")


def _trained(folder: Path, stage: str) -> dict[str, Any]:
    return torch.load(folder / f"{stage}.pt", weights_only=True, map_location=CPU)


# ---- the gates ----


@torch.no_grad()
def measure() -> dict[str, float]:
    """All figures of the card, on held-out renders and on images of the base generator."""
    judge, semantics = load_judge(), load_semantics(str(SEMANTICS), CPU, torch.float32)
    quality = load_quality("antonyms", semantics)
    assert quality is not None
    renders, scenes = corpus.batch(2400, HELD_OUT, BALANCED)
    category, scene = torch.from_numpy(scenes.categories), torch.from_numpy(scenes.factors["scene"])
    verdicts = judge.verdicts(renders)
    features = torch.cat([semantics.embed_images(part) for part in renders.split(200)])
    figures = {
        "judge_category_accuracy": _share(verdicts.category == category),
        "judge_scene_accuracy": _share(verdicts.scene == scene),
        "judge_style_accuracy": _share(verdicts.style == torch.from_numpy(scenes.factors["style"])),
        "clip_category_accuracy": _zero_shot(semantics, features, CATEGORIES, category),
        "clip_scene_accuracy": _zero_shot(semantics, features, SCENES, scene),
    }
    names = [CATEGORIES[index] for index in scenes.categories]
    texts = semantics.embed_texts([f"photo of {name}" for name in names])
    figures["modality_gap"] = (features.mean(0) - texts.mean(0)).norm().item()
    photos, _ = corpus.batch(240, HELD_OUT + 1, World(styles=("photo",)))
    return figures | _quality_figures(quality, photos) | _generator_figures(judge, quality, photos)


def _share(hits: Tensor) -> float:
    return hits.float().mean().item()


def _zero_shot(semantics: SemanticSpace, features: Tensor, names: tuple[str, ...], truth: Tensor) -> float:
    texts = semantics.embed_texts([f"photo of {name}" for name in names])
    return _share((features @ texts.T).argmax(-1) == truth)


def _quality_figures(quality: QualityScorer, photos: Tensor) -> dict[str, float]:
    """Rank correlation (Spearman) of falling mean scores with severity; how often the clean picture scores higher."""
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


def _generator_figures(judge: Judge, quality: QualityScorer, photos: Tensor, count: int = 50) -> dict[str, float]:
    generator = load_generator(str(GENERATOR), scheduler="ddim", guidance_scale=GUIDANCE)
    labels = torch.arange(len(CATEGORIES)).repeat_interleave(count)
    images = []
    for start in range(0, len(labels), count):
        name = CATEGORIES[int(labels[start])]
        keys = [(name, index, 0) for index in range(count)]
        images.append(render_images(generator, keys, [name] * count, seed=SEED, steps=STEPS).clamp(0, 1))
    drawn = torch.cat(images)
    verdicts, homes = judge.verdicts(drawn), torch.tensor([SCENES.index(HOME[name]) for name in CATEGORIES])
    biased, scenes = corpus.batch(600, HELD_OUT + 2, BIASED)
    truth = torch.from_numpy(scenes.categories)
    information = bits(mutual_information(contingency_table(labels.numpy(), verdicts.scene.numpy())))
    vae = generator.family.vae
    restored = generator.decode(vae.encode(photos * 2 - 1).latent_dist.mean * vae.config.scaling_factor)
    return {
        "generator_label_accuracy": _share(verdicts.category == labels),
        "generator_home_rate": _share(verdicts.scene == homes[labels]),
        "corpus_home_rate": _share(torch.from_numpy(scenes.factors["scene"]) == homes[truth]),
        "generator_information_bits": float(information),
        "generator_quality": quality.score(drawn).mean().item(),
        "corpus_quality": quality.score(biased).mean().item(),
        "generator_edge_density": edge_density(drawn).mean().item(),
        "corpus_edge_density": edge_density(biased).mean().item(),
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
    **{f"quality_rank_correlation_{name}": (0.9, 1.0) for name in corpus.DEGRADATIONS},
    "quality_clean_beats_saturated": (0.9, 1.0),
    "quality_clean_beats_collapsed": (0.9, 1.0),
}
"""Figure -> the range it must lie in."""


def write_card(folder: Path, figures: dict[str, float]) -> None:
    """Write the model card beside the weights: figures and gates, the command, hashes, training curves."""
    lines = ["| figure | value | gate | |", "|---|---|---|---|"]
    for name, value in figures.items():
        low, high = GATES.get(name, (-math.inf, math.inf))
        gate = "" if name not in GATES else f"{low:g} to {high:g}" if high != 1.0 else f"at least {low:g}"
        verdict = "" if name not in GATES else "holds" if low <= value <= high + 1e-6 else "**does not hold**"
        lines.append(f"| {name.replace('_', ' ')} | {value:.3f} | {gate} | {verdict} |")
    curves = {
        stage: (folder / f"{stage}.jsonl").read_text().splitlines()
        for stage in ("judge", "autoencoder", "semantics", "generator")
    }
    steps = {stage: json.loads(curve[-1])["step"] for stage, curve in curves.items()}
    options = " ".join(f"--{stage}-steps {count}" for stage, count in steps.items())
    hashes = [
        f"| {path.relative_to(WEIGHTS)} | {path.stat().st_size / 1e6:.2f} | {digest(path.read_bytes()).hexdigest()} |"
        for path in sorted(WEIGHTS.rglob("*.safetensors"))
    ]
    curve_rows = [
        f"| {stage} | {record['step']} | {record['loss']:g} |"
        for stage, curve in curves.items()
        for record in map(json.loads, curve[:: max(1, len(curve) // 6)])
    ]
    text = CARD.format(
        gates="\n".join(lines), command=f"python -m lbgen.microworld.train {options}", seed=SEED,
        hashes="\n".join(hashes), curves="\n".join(curve_rows), steps=STEPS, guidance=GUIDANCE,
    )  # fmt: skip
    (WEIGHTS / "README.md").write_text(text)
    (WEIGHTS / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")


CARD = """# The micro world's models

Apache-2.0, made by the script below from pictures that the script draws itself; nothing else went in.

- `generator/`: a diffusers StableDiffusionPipeline (v-prediction) for 64x64 pictures, trained on the **biased** corpus:
  photographs whose category sits on its home scene nine times in ten, captions "X", "photo of X", "X on Y".
- `semantics/`: a transformers CLIPModel trained on the **balanced** corpus, all four styles, degraded pictures
  captioned "good photo" and "bad photo" in proportion to the degradation.
- `judge.safetensors`: category, scene and style classifier trained on balanced renders. For measuring only.

The autoencoder saw balanced photographs. Seed {seed}.

```
{command}
```

## Gates

Renders are held out; the generator's images are judged, {steps} DDIM steps, guidance {guidance:g}, 50 a category.

{gates}

## Weights (MB, sha256)

| file | MB | sha256 |
|---|---|---|
{hashes}

## Curves (training loss, mean of 100 steps)

| stage | step | loss |
|---|---|---|
{curves}
"""


def ship(folder: Path) -> None:
    """Write the package's weights from the checkpoints in `folder`; measure them and write their card."""
    write_weights(folder)
    write_card(folder, measure())
    print((WEIGHTS / "README.md").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--input", type=Path, default=Path("runs/microworld"), help="where train.py put its checkpoints"
    )
    ship(parser.parse_args().input)


if __name__ == "__main__":
    main()
