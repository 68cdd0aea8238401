"""Write the shipped weights and measure them: the last part of train.py, or `python -m lbgen.microworld.card`.

Figures and their gates are in figures.py.
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
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
)  # fmt: skip
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPTextModel

from lbgen.microworld import FLOW, GENERATOR, PAIRS, SEMANTICS, WEIGHTS, figures
from lbgen.microworld.architectures import (
    Denoiser,
    FlowDenoiser,
    autoencoder,
    noise_scheduler,
    semantic_model,
    tokenizer,
)
from lbgen.microworld.corpus import SEED
from lbgen.microworld.judge import Judge
from lbgen.models.checkpoints.written import write_pipeline

STAGES = ("judge", "autoencoder", "semantics", "generator", "flow", "pairs")
"""Stages of the training, in order."""


def write_weights(folder: Path) -> None:
    """Write the models of the checkpoints in `folder` as fp16 safetensors into the package; others are unchanged."""
    writers = {
        "judge": write_judge,
        "semantics": write_semantics,
        "generator": write_generator,
        "flow": write_flow,
        "pairs": write_pairs,
    }
    for stage in _stages(folder) & {*writers}:
        writers[stage](folder)


def _stages(folder: Path) -> set[str]:
    """The stages of which `folder` has checkpoints."""
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
    _write_denoiser(folder, "generator", GENERATOR)


def write_pairs(folder: Path, target: Path = PAIRS) -> None:
    _write_denoiser(folder, "pairs", target)


def _write_denoiser(folder: Path, stage: str, target: Path) -> None:
    words = tokenizer()
    denoiser = Denoiser(words)
    denoiser.load_state_dict(_trained(folder, stage)["averaged"])
    pipeline = StableDiffusionPipeline(
        vae=trained_autoencoder(folder).half(), text_encoder=denoiser.text_encoder.half(), tokenizer=words,
        unet=denoiser.unet.half(),
        scheduler=DDIMScheduler.from_config(noise_scheduler().config, clip_sample=False, set_alpha_to_one=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    write_pipeline(pipeline, target)
    _load_in_float32(target / "text_encoder" / "config.json")


def trained_denoiser(folder: Path) -> Denoiser:
    """The generator of the checkpoint in `folder`, in float32; without one, the package's."""
    denoiser = Denoiser(tokenizer())
    if (folder / "generator.pt").exists():
        denoiser.load_state_dict(_trained(folder, "generator")["averaged"])
        return denoiser
    denoiser.unet = UNet2DConditionModel.from_pretrained(GENERATOR / "unet", torch_dtype=torch.float32)
    denoiser.text_encoder = CLIPTextModel.from_pretrained(GENERATOR / "text_encoder", dtype=torch.float32)
    return denoiser


def write_flow(folder: Path, target: Path = FLOW) -> None:
    words = tokenizer()
    words.chat_template = "{{ messages[0].content }}"  # required by the pipeline
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

    Its configuration has the scaling of the latents in `folder`, if these exist.
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
    """Make transformers load the fp16 weights in float32 by default, like diffusers; mixed precision would fail."""
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}, indent=2, sort_keys=True) + "\n")


def _trained(folder: Path, stage: str) -> dict[str, Any]:
    return torch.load(folder / f"{stage}.pt", weights_only=True, map_location=figures.CPU)


def write_card(folder: Path, measured: dict[str, float]) -> None:
    """Write the model card beside the weights: figures and gates, the command, hashes, training curves."""
    lines = ["| figure | value | gate | |", "|---|---|---|---|"]
    for name, value in measured.items():
        low, high = figures.GATES.get(name, (-math.inf, math.inf))
        gate = "" if name not in figures.GATES else f"{low:g} to {high:g}" if high != 1.0 else f"at least {low:g}"
        verdict = "" if name not in figures.GATES else "holds" if low <= value <= high + 1e-6 else "**does not hold**"
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
        hashes="\n".join(hashes), curves="\n".join(curve_rows), steps=figures.STEPS, guidance=figures.GUIDANCE,
    )  # fmt: skip
    (WEIGHTS / "README.md").write_text(text)
    (WEIGHTS / "figures.json").write_text(json.dumps(measured, indent=2) + "\n")


def _curves(folder: Path) -> dict[str, Any]:
    """Number of steps and some points of the curve of each stage; for a stage that `folder` lacks, those of the card.

    They are stored in curves.json beside the card.
    """
    kept = WEIGHTS / "curves.json"
    curves: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for path in (folder / f"{stage}.jsonl" for stage in STAGES):
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
- `pairs/`: `generator/` trained further on pictures of which three quarters show two objects side by side or one above
  the other, captions "X and Y" as well; the scene is the home of the first one nine times in ten.
- `semantics/`: a transformers CLIPModel trained on the **balanced** corpus, all four styles, degraded pictures
  captioned "good photo" and "bad photo" in proportion to the degradation.
- `judge.safetensors`: category, scene and style classifier trained on balanced renders. For measuring only.

The autoencoder saw balanced photographs. Seed {seed}.

```
{command}
```

## Gates

Renders are held out; the generators' images are judged, {steps} steps, 50 a category, prompts with one name:
DDIM with guidance {guidance[generator]:g}, and for flow Euler's method with {guidance[flow]:g} (Z-Image's scale s is
elsewhere's s + 1).

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
    write_card(folder, figures.measure(_stages(folder)))
    print((WEIGHTS / "README.md").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--input", type=Path, default=Path("runs/microworld"), help="where train.py put its checkpoints"
    )
    ship(parser.parse_args().input)


if __name__ == "__main__":
    main()
