"""Write the shipped weights and measure them: the last part of train.py, or `python -m lbgen.microworld.card`.

The gates are the ranges in which figures must lie, so that a bias measured in the micro world means something.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from hashlib import sha256 as digest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
    ZImagePipeline,
)  # fmt: skip
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPImageProcessor

from lbgen.metrics.information import bits, contingency_table, mutual_information
from lbgen.metrics.pixels import edge_density
from lbgen.metrics.zero_shot import label_agreement
from lbgen.microworld import FLOW, GENERATOR, SEMANTICS, WEIGHTS, corpus
from lbgen.microworld.architectures import (
    Denoiser,
    FlowDenoiser,
    autoencoder,
    noise_scheduler,
    semantic_model,
    tokenizer,
)
from lbgen.microworld.corpus import SEED
from lbgen.microworld.judge import Judge, load_judge
from lbgen.microworld.scenes import BALANCED, BIASED, World
from lbgen.microworld.world import CATEGORIES, HOME, SCENES
from lbgen.models.checkpoints.written import write_pipeline
from lbgen.models.generator import load_generator
from lbgen.models.quality import QualityScorer, load_quality
from lbgen.models.sampling import render_images
from lbgen.models.semantics import SemanticSpace, load_semantics

HELD_OUT = SEED + 500_000_000
"""Seed of the renders that everything is measured on; no stage trains on them."""
STEPS = 12
SCHEDULERS = {"generator": "ddim", "flow": None}
GUIDANCE = {"generator": 2.0, "flow": 1.5}
"""Scales; Z-Image's counts from 0: 1.5 there is elsewhere's 2.5."""
CPU = torch.device("cpu")


def write_weights(folder: Path) -> None:
    """Write the models of the checkpoints in `folder` as fp16 safetensors into the package; others stay as they are."""
    writers = {"judge": write_judge, "semantics": write_semantics, "generator": write_generator, "flow": write_flow}
    for stage in _stages(folder) & {*writers}:
        writers[stage](folder)


def _stages(folder: Path) -> set[str]:
    """Those that `folder` has checkpoints of."""
    return {path.stem for path in folder.glob("*.pt")}


def write_judge(folder: Path) -> None:
    judge = Judge()
    judge.load_state_dict(_trained(folder, "judge")["module"])
    half = {name: value.half() if value.is_floating_point() else value for name, value in judge.state_dict().items()}
    WEIGHTS.mkdir(exist_ok=True)
    save_file(half, WEIGHTS / "judge.safetensors")


def write_semantics(folder: Path) -> None:
    words = tokenizer()
    semantics = semantic_model(words)
    semantics.load_state_dict(_trained(folder, "semantics")["averaged"])
    semantics.half().save_pretrained(SEMANTICS)
    words.save_pretrained(SEMANTICS)
    plain = {"do_normalize": True, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    size = semantics.config.vision_config.image_size
    CLIPImageProcessor(size={"shortest_edge": size}, crop_size=size, **plain).save_pretrained(SEMANTICS)
    _load_in_float32(SEMANTICS / "config.json")


def write_generator(folder: Path) -> None:
    words = tokenizer()
    denoiser = Denoiser(words)
    denoiser.load_state_dict(_trained(folder, "generator")["averaged"])
    pipeline = StableDiffusionPipeline(
        vae=trained_autoencoder(folder).half(), text_encoder=denoiser.text_encoder.half(), tokenizer=words,
        unet=denoiser.unet.half(),
        scheduler=DDIMScheduler.from_config(noise_scheduler().config, clip_sample=False, set_alpha_to_one=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    write_pipeline(pipeline, GENERATOR)
    _load_in_float32(GENERATOR / "text_encoder" / "config.json")


def write_flow(folder: Path, target: Path = FLOW) -> None:
    words = tokenizer()
    words.chat_template = "{{ messages[0].content }}"  # the pipeline asks for one
    denoiser = FlowDenoiser(words)
    denoiser.load_state_dict(_trained(folder, "flow")["averaged"])
    vae = trained_autoencoder(folder)
    vae.register_to_config(shift_factor=0.0)  # the pipeline adds it
    pipeline = ZImagePipeline(
        vae=vae.half(), text_encoder=denoiser.text_encoder.half(), tokenizer=words,
        transformer=denoiser.transformer.half(), scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
    write_pipeline(pipeline, target)
    _load_in_float32(target / "text_encoder" / "config.json")


def trained_autoencoder(folder: Path) -> AutoencoderKL:
    """The averaged weights of the checkpoint in `folder`, in float32; without one, the package's.

    Its configuration has the scaling of the latents in `folder`, if they were made.
    """
    if (folder / "autoencoder.pt").exists():
        vae = autoencoder()
        vae.load_state_dict(_trained(folder, "autoencoder")["averaged"])
    else:
        vae = AutoencoderKL.from_pretrained(GENERATOR / "vae", torch_dtype=torch.float32)
    if (folder / "latents.npz").exists():
        with np.load(folder / "latents.npz") as arrays:
            vae.register_to_config(scaling_factor=float(arrays["scaling_factor"]))
    return vae.eval()


def _load_in_float32(path: Path) -> None:
    """Make transformers load the fp16 weights in float32 by default, as diffusers does; mixed precisions do not run."""
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}, indent=2, sort_keys=True) + "\n")


def _trained(folder: Path, stage: str) -> dict[str, Any]:
    return torch.load(folder / f"{stage}.pt", weights_only=True, map_location=CPU)


# ---- the gates ----


@torch.no_grad()
def measure(folder: Path) -> dict[str, float]:
    """All figures of the card, on held-out renders and on images of the generators.

    Where `folder` has a checkpoint of the flow-matching generator alone, the other figures are those of the card.
    """
    judge, semantics = load_judge(), load_semantics(str(SEMANTICS), CPU, torch.float32)
    quality = load_quality("antonyms", semantics)
    assert quality is not None
    if _stages(folder) == {"flow"}:
        figures = json.loads((WEIGHTS / "figures.json").read_text())
    else:
        figures = _measure_first_models(judge, semantics, quality)
    return figures | _generator_figures("flow", FLOW, judge, quality)


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


def _generator_figures(
    name: str, place: Path, judge: Judge, quality: QualityScorer, count: int = 50
) -> dict[str, float]:
    """Of `count` images of each category."""
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
    curves = _curves(folder)
    options = " ".join(f"--{stage}-steps {curve['steps']}" for stage, curve in curves.items())
    hashes = [
        f"| {path.relative_to(WEIGHTS)} | {path.stat().st_size / 1e6:.2f} | {digest(path.read_bytes()).hexdigest()} |"
        for path in sorted(WEIGHTS.rglob("*.safetensors"))
    ]
    curve_rows = [
        f"| {stage} | {step} | {loss:g} |" for stage, curve in curves.items() for step, loss in curve["losses"]
    ]
    text = CARD.format(
        gates="\n".join(lines), command=f"python -m lbgen.microworld.train {options}", seed=SEED,
        hashes="\n".join(hashes), curves="\n".join(curve_rows), steps=STEPS, guidance=GUIDANCE,
    )  # fmt: skip
    (WEIGHTS / "README.md").write_text(text)
    (WEIGHTS / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")


def _curves(folder: Path) -> dict[str, Any]:
    """Each stage's number of steps and some points of its curve; of a stage that `folder` lacks, those of the card.

    They are kept in curves.json beside the card.
    """
    kept = WEIGHTS / "curves.json"
    curves: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for path in (folder / f"{stage}.jsonl" for stage in ("judge", "autoencoder", "semantics", "generator", "flow")):
        if path.exists():
            records = [json.loads(line) for line in path.read_text().splitlines()]
            every = max(1, len(records) // 6)
            losses = [[each["step"], each["loss"]] for each in records[::every]]
            curves[path.stem] = {"steps": records[-1]["step"], "losses": losses}
    kept.write_text(json.dumps(curves) + "\n")
    return curves


CARD = """# The micro world's models

Apache-2.0, made by the script below from pictures that the script draws itself; nothing else went in.

- `generator/`: a diffusers StableDiffusionPipeline (v-prediction) for 64x64 pictures, trained on the **biased** corpus:
  photographs whose category sits on its home scene nine times in ten, captions "X", "photo of X", "X on Y".
- `flow/`: a diffusers ZImagePipeline (flow matching) for the same pictures, trained on the same corpus, with the
  autoencoder of `generator/`.
- `semantics/`: a transformers CLIPModel trained on the **balanced** corpus, all four styles, degraded pictures
  captioned "good photo" and "bad photo" in proportion to the degradation.
- `judge.safetensors`: category, scene and style classifier trained on balanced renders. For measuring only.

The autoencoder saw balanced photographs. Seed {seed}.

```
{command}
```

## Gates

Renders are held out; the generators' images are judged, {steps} steps, 50 a category: DDIM with guidance
{guidance[generator]:g}, and for flow Euler's method with {guidance[flow]:g} (Z-Image's scale s is elsewhere's s + 1).

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
    write_card(folder, measure(folder))
    print((WEIGHTS / "README.md").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--input", type=Path, default=Path("runs/microworld"), help="where train.py put its checkpoints"
    )
    ship(parser.parse_args().input)


if __name__ == "__main__":
    main()
