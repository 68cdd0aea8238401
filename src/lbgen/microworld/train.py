"""Training the micro world's models: `python -m lbgen.microworld.train`.

There are six resumable stages: the judge, the autoencoder, the semantic space (CLIP), and three generators, which need
the autoencoder: latent diffusion ("generator"), flow matching ("flow"), and the first generator trained further on
pictures of two objects ("pairs"). Then the shipped fp16 weights are written (card.py) and the gates measured
(figures.py). `--stages` trains only some stages, for example in parallel; `python -m lbgen.microworld.card` then writes
and measures. Stages "flow" and "pairs" can use the models that come with lbgen.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPModel

from lbgen.microworld import card, corpus
from lbgen.microworld.architectures import (
    Denoiser,
    FlowDenoiser,
    autoencoder,
    noise_scheduler,
    semantic_model,
    tokenizer,
)
from lbgen.microworld.corpus import SEED
from lbgen.microworld.fit import fit
from lbgen.microworld.judge import Judge
from lbgen.microworld.scenes import BALANCED, BIASED, Scenes, World
from lbgen.microworld.world import CATEGORIES, SCENES, STYLES
from lbgen.runs import atomic

STEPS = {"judge": 2500, "autoencoder": 5000, "semantics": 6000, "generator": 6000, "flow": 2600, "pairs": 6000}
FLOW_FIRST_STEPS, FLOW_COSINE = 1000, 4700
"""Number of first steps of "flow", and the length of their cosine schedule; later steps use STEPS["flow"]."""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bfloat16_autocast() -> torch.autocast:
    """Convolutions in bfloat16, twice as fast for the judge and the autoencoder, also on a CPU with AVX-512."""
    return torch.autocast(DEVICE.type, torch.bfloat16)


def seed_of(stage: str, step: int) -> int:
    """A different seed for every step of every stage."""
    return SEED + list(STEPS).index(stage) * 10_000_000 + step


def train_judge(folder: Path, steps: int, factors: Sequence[str] = ("scene", "style")) -> Judge:
    torch.manual_seed(SEED)
    judge = Judge(factors).to(DEVICE)

    def loss(step: int) -> Tensor:
        seed = seed_of("judge", step)
        images, scenes = corpus.batch(64, seed, BALANCED)
        rng = torch.Generator().manual_seed(seed)
        severity = 0.35 * torch.rand(len(images), generator=rng) * (torch.rand(len(images), generator=rng) < 0.5)
        with bfloat16_autocast():
            _, logits = judge(corpus.degrade(images, severity, rng).to(DEVICE))
        truth = {"category": scenes.categories, **scenes.factors}
        losses = [F.cross_entropy(logits[name].float(), torch.from_numpy(truth[name]).to(DEVICE)) for name in logits]
        return torch.stack(losses).sum()

    fit("judge", judge, loss, steps, 3e-3, folder)
    return judge


def train_autoencoder(folder: Path, steps: int) -> AutoencoderKL:
    torch.manual_seed(SEED)
    model = autoencoder().to(DEVICE)

    def loss(step: int) -> Tensor:
        seed = seed_of("autoencoder", step)
        images, scenes = corpus.batch(8, seed, World(styles=("photo",)))
        images, masks = images.to(DEVICE) * 2 - 1, torch.from_numpy(scenes.masks).to(DEVICE)
        with bfloat16_autocast():
            posterior = model.encode(images).latent_dist
            decoded = model.decode(posterior.sample(torch.Generator().manual_seed(seed))).sample
        error = decoded.float() - images
        weighted = error * (1 + 3 * masks[:, None])  # objects fill a quarter of a picture
        return weighted.abs().mean() + weighted.square().mean() + 0.5 * _edges(error) + 1e-6 * posterior.kl().mean()

    fit("autoencoder", model, loss, steps, 3e-3, folder, average=0.99)
    return model


def _edges(difference: Tensor) -> Tensor:
    """Mean absolute error of the horizontal and vertical gradients, which keeps outlines sharp."""
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()


def train_semantics(folder: Path, steps: int) -> CLIPModel:
    torch.manual_seed(SEED)
    words = tokenizer()
    model = semantic_model(words).to(DEVICE)

    def loss(step: int) -> Tensor:
        seed = seed_of("semantics", step)
        images, scenes = corpus.batch(64, seed, BALANCED)
        rng = torch.Generator().manual_seed(seed)
        severity = torch.rand(len(images), generator=rng) * (torch.rand(len(images), generator=rng) < 0.6)
        seen = corpus.degrade(images, severity, rng).to(DEVICE)
        features = F.normalize(model.get_image_features(seen).pooler_output, dim=-1)
        template = ("{}", "photo of {}", "photo of {}", "a photo of a {}")[step % 4]
        total = torch.zeros((), device=DEVICE)
        for captions, truth, weight in _contrasts(scenes, severity, template):
            tokens = words(captions, padding=True, return_tensors="pt").to(DEVICE)
            texts = F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
            logits = model.logit_scale.exp() * features @ texts.T  # (B, captions)
            errors = F.cross_entropy(logits, truth.to(DEVICE), reduction="none")
            total = total + (weight.to(DEVICE) * errors).mean()
        return total

    fit("semantics", model, loss, steps, 1e-3, folder, average=0.995)
    return model


def _contrasts(scenes: Scenes, severity: Tensor, template: str) -> Iterator[tuple[list[str], Tensor, Tensor]]:
    """Contrastive tasks for B pictures: captions, index or shares of the right caption for each picture, weights (B,).

    Every picture is compared with all captions of a kind (InfoNCE with all others of the kind as negatives). Captions
    of the content have less weight the more a picture is degraded.
    """
    category = torch.from_numpy(scenes.categories)
    scene, style = (torch.from_numpy(scenes.factors[name]) for name in ("scene", "style"))
    clean = 1 - severity
    yield [template.format(name) for name in CATEGORIES], category, clean
    yield [template.format(name) for name in SCENES], scene, 0.5 * clean
    both = [f"{name} on {place}" for name in CATEGORIES for place in SCENES]
    yield both, category * len(SCENES) + scene, clean
    yield list(STYLES), style, 0.25 * clean
    subject = template.format(CATEGORIES[int(category[0])])
    for good, bad in (("good photo", "bad photo"), (f"good {subject}", f"bad {subject}")):
        yield [good, bad], torch.stack([clean, severity], 1), torch.ones_like(severity)


def train_generator(
    folder: Path, steps: int, vae: AutoencoderKL, corpus_size: int = 24_576, size: int = 48,
    world: World = BIASED, start: Denoiser | None = None, scaling: float | None = None,
) -> Denoiser:  # fmt: skip
    """Train on a corpus of `world`, from new weights or from `start`, whose latents were multiplied by `scaling`."""
    torch.manual_seed(SEED)
    latents, captions = _latents(folder, vae, corpus_size, partial(_one_object, world=world), scaling)
    model = (start or Denoiser(tokenizer())).to(DEVICE)
    _train_denoiser("generator", model, latents, captions, steps, 1e-3, folder, size)
    return model


def train_pairs(folder: Path, steps: int, vae: AutoencoderKL, corpus_size: int = 24_576, size: int = 48) -> Denoiser:
    """Train the generator further on photographs, three quarters of which have two objects."""
    factor = vae.config.scaling_factor
    latents, captions = _latents(folder, vae, corpus_size, _mostly_two_objects, factor, "pairs-latents")
    model = card.trained_denoiser(folder).to(DEVICE)
    _train_denoiser("pairs", model, latents, captions, steps, 1e-3, folder, size)
    return model


def _train_denoiser(
    stage: str, model: Denoiser, latents: Tensor, captions: NDArray[np.str_], steps: int, learning_rate: float,
    folder: Path, size: int,
) -> None:  # fmt: skip
    """Train to predict the velocity, on latents (N, 4, 16, 16), each with a random one of its captions (N, K)."""
    words, scheduler = tokenizer(), noise_scheduler()

    def loss(step: int) -> Tensor:
        seed = seed_of(stage, step)
        rng, numpy_rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
        rows = numpy_rng.integers(0, len(latents), size)
        tokens = words([str(text) for text in captions[rows, numpy_rng.integers(0, captions.shape[1], size)]],
                       padding="max_length", truncation=True, return_tensors="pt")  # fmt: skip
        clean = latents[torch.from_numpy(rows)]
        noise = torch.randn(clean.shape, generator=rng)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (size,), generator=rng)
        noisy, target = scheduler.add_noise(clean, noise, timesteps), scheduler.get_velocity(clean, noise, timesteps)
        velocity = model(noisy.to(DEVICE), timesteps.to(DEVICE), tokens.input_ids.to(DEVICE))
        return F.mse_loss(velocity, target.to(DEVICE))

    fit(stage, model, loss, steps, learning_rate, folder, average=0.998)


def train_flow(folder: Path, steps: int, vae: AutoencoderKL, corpus_size: int = 24_576, size: int = 48) -> FlowDenoiser:
    """Train the flow-matching generator on the biased corpus, on the latents and captions of `train_generator`."""
    torch.manual_seed(SEED)
    latents, captions = _latents(folder, vae, corpus_size, partial(_one_object, world=BIASED), None)
    words = tokenizer()
    model = FlowDenoiser(words).to(DEVICE)

    def loss(step: int) -> Tensor:
        seed = seed_of("flow", step)
        rng, numpy_rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
        rows = numpy_rng.integers(0, corpus_size, size)
        tokens = words([str(text) for text in captions[rows, numpy_rng.integers(0, captions.shape[1], size)]],
                       padding=True, return_tensors="pt").to(DEVICE)  # fmt: skip
        clean = latents[torch.from_numpy(rows)]
        noise = torch.randn(clean.shape, generator=rng)
        sigmas = torch.randn(size, generator=rng).sigmoid()  # logit-normal: most noise levels are in the middle
        noisy = torch.lerp(clean, noise, sigmas.view(-1, 1, 1, 1))
        with bfloat16_autocast():
            velocity = model(noisy.to(DEVICE), sigmas.to(DEVICE), tokens.input_ids, tokens.attention_mask)
        return F.mse_loss(velocity.float(), (noise - clean).to(DEVICE))

    def cosine_steps(step: int) -> int:
        return FLOW_COSINE if step <= FLOW_FIRST_STEPS else steps

    fit("flow", model, loss, steps, 2e-3, folder, average=0.998, matrices=model.matrices(), cosine_steps=cosine_steps)
    return model


Draw = Callable[[int, int], tuple[Tensor, list[list[str]]]]
"""Function of (count, start) that renders pictures of a corpus: images (B, 3, 64, 64), and four lists of captions."""


def _one_object(count: int, start: int, world: World) -> tuple[Tensor, list[list[str]]]:
    images, scenes = corpus.batch(count, SEED + 90_000_000 + start, world)
    rng = np.random.default_rng(SEED + start)
    return images, [corpus.prompts(scenes, rng) for _ in range(4)]


def _mostly_two_objects(count: int, start: int) -> tuple[Tensor, list[list[str]]]:
    images, captions = _one_object(count // 4, start, BIASED)
    more, pairs = corpus.pairs(count - count // 4, SEED + 95_000_000 + start, BIASED)
    rng = np.random.default_rng((SEED + start, 2))
    return torch.cat([images, more]), [each + corpus.prompts(pairs, rng) for each in captions]


@torch.no_grad()
def _latents(
    folder: Path, vae: AutoencoderKL, count: int, draw: Draw, scaling: float | None, name: str = "latents"
) -> tuple[Tensor, NDArray[np.str_]]:
    """Latents of the corpus (N, 4, 16, 16), multiplied by `scaling`, and four captions of each picture (N, 4).

    scaling: None scales to unit variance.

    They are stored in `folder/NAME.npz` with the scaling factor, which is copied from latents.npz to the autoencoder's
    config, and made again if the autoencoder was trained since.
    """
    kept, trained = folder / f"{name}.npz", folder / "autoencoder.pt"
    if not kept.exists() or (trained.exists() and kept.stat().st_mtime < trained.stat().st_mtime):
        parts, texts = [], []
        for start in range(0, count, 512):
            images, captions = draw(512, start)
            parts += [vae.encode(part.to(DEVICE) * 2 - 1).latent_dist.mean.cpu() for part in images.split(32)]
            texts.append(np.array(captions).T)
        latents = torch.cat(parts)
        scaling = scaling or 1 / float(latents.std())
        with atomic.replacing(kept) as temporary, temporary.open("wb") as file:
            np.savez(file, latents=latents * scaling, captions=np.concatenate(texts), scaling_factor=scaling)
    with np.load(kept) as arrays:
        return torch.from_numpy(arrays["latents"]), arrays["captions"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/microworld"), help="where checkpoints and curves go")
    parser.add_argument("--stages", nargs="+", choices=list(STEPS), default=list(STEPS))
    for stage, steps in STEPS.items():
        parser.add_argument(f"--{stage}-steps", type=int, default=steps)
    arguments = parser.parse_args()
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    if "judge" in arguments.stages:
        train_judge(folder, arguments.judge_steps)
    if "semantics" in arguments.stages:
        train_semantics(folder, arguments.semantics_steps)
    if "autoencoder" in arguments.stages or "generator" in arguments.stages:
        vae = train_autoencoder(folder, arguments.autoencoder_steps)
    if "generator" in arguments.stages:
        train_generator(folder, arguments.generator_steps, vae)
    if "flow" in arguments.stages:
        train_flow(folder, arguments.flow_steps, card.trained_autoencoder(folder).to(DEVICE))
    if "pairs" in arguments.stages:
        train_pairs(folder, arguments.pairs_steps, card.trained_autoencoder(folder).to(DEVICE))
    if set(arguments.stages) == set(STEPS):
        card.ship(folder)


if __name__ == "__main__":
    main()
