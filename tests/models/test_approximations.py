"""The approximations of generation against trajectories written out by hand over the raw diffusers modules."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PNDMScheduler
from torch import Tensor
from trajectories import PROMPTS, STEPS, draws, gradients_of, images_of, shake

from lbgen.configuration.recipes import resolve
from lbgen.generation.config import GenerateConfig, approximations
from lbgen.models.generator import Generator, load_generator
from lbgen.models.sampling import sample

GUIDANCE = 2.0
NOISE_LEVELS = (0.5, 5.0)


def by_hand(generator: Generator, predict: Callable[[int, Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """The images of `images_of`; predict: (number of the call, latents, timestep, text of "" and prompts) -> noise."""
    pipeline = generator.family.pipeline
    scheduler = PNDMScheduler.from_config(pipeline.scheduler.config)
    tokens = pipeline.tokenizer(["", "", *PROMPTS], padding="max_length", max_length=16, return_tensors="pt")
    texts = pipeline.text_encoder(tokens.input_ids)[0]
    latents, _ = draws()
    scheduler.set_timesteps(STEPS)
    for number, timestep in enumerate(scheduler.timesteps):
        latents = scheduler.step(predict(number, latents, timestep, texts), timestep, latents).prev_sample
    return pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample / 2 + 0.5


def noise_level(timestep: Tensor) -> float:
    """From the definition of the scaled linear schedule: the product of 1 - beta is the signal's variance."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    signal = (1 - betas[: int(timestep) + 1]).prod()
    return float(((1 - signal) / signal).sqrt())


@torch.no_grad()
def test_guidance_acts_within_its_interval_only(tiny_sd_folder: Path) -> None:
    """Against a loop that asks the network for both only where the noise level is in the interval."""
    plain = load_generator(str(tiny_sd_folder), guidance_scale=GUIDANCE)
    rows = []

    def predict(number: int, latents: Tensor, timestep: Tensor, texts: Tensor) -> Tensor:
        def noise(these: Tensor) -> Tensor:
            return plain.family.unet(latents, timestep, these).sample

        guided = NOISE_LEVELS[0] < noise_level(timestep) <= NOISE_LEVELS[1]
        rows.append(4 if guided else 2)
        empty, prompted = noise(texts[:2]), noise(texts[2:])
        return empty + GUIDANCE * (prompted - empty) if guided else prompted

    expected = by_hand(plain, predict)
    limited = load_generator(str(tiny_sd_folder), guidance_scale=GUIDANCE, guidance_interval=NOISE_LEVELS)
    seen = []
    limited.family.unet.conv_in.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    torch.testing.assert_close(images_of(limited), expected, rtol=1e-4, atol=1e-5)
    assert seen == rows and set(rows) == {2, 4}  # half the work outside the interval
    assert (expected - images_of(plain)).abs().max() > 1e-3


def unet_by_hand(unet: Any, latents: Tensor, timestep: Tensor, text: Tensor, deep: Tensor | None) -> tuple[Tensor, ...]:
    """The miniature's prediction and what its last up block is given: `deep`, or else computed."""
    time = unet.time_embedding(unet.time_proj(timestep.expand(len(latents))))
    first, second, middle, deepest, last = *unet.down_blocks, unet.mid_block, *unet.up_blocks
    start = unet.conv_in(latents)
    skip = first.attentions[0](first.resnets[0](start, time), encoder_hidden_states=text, return_dict=False)[0]
    if deep is None:
        below = first.downsamplers[0](skip)
        bottom = second.resnets[0](below, time)
        hidden = middle.attentions[0](middle.resnets[0](bottom, time), encoder_hidden_states=text, return_dict=False)[0]
        hidden = middle.resnets[1](hidden, time)
        hidden = deepest.resnets[0](torch.cat([hidden, bottom], dim=1), time)
        hidden = deepest.resnets[1](torch.cat([hidden, below], dim=1), time)
        deep = deepest.upsamplers[0](hidden)
    hidden = deep
    for resnet, attention, other in zip(last.resnets, last.attentions, (skip, start), strict=True):
        hidden = attention(
            resnet(torch.cat([hidden, other], dim=1), time), encoder_hidden_states=text, return_dict=False
        )[0]
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden))), deep


@torch.no_grad()
@pytest.mark.parametrize("interval", [2, 3, 100])
def test_deep_blocks_are_computed_at_every_nth_call(interval: int, tiny_sd_folder: Path) -> None:
    """Against the network written out by hand, given the deep features of the last multiple of the interval."""
    plain, deep = load_generator(str(tiny_sd_folder), guidance_scale=GUIDANCE), None

    def predict(number: int, latents: Tensor, timestep: Tensor, texts: Tensor) -> Tensor:
        nonlocal deep
        kept = None if number % interval == 0 else deep
        noise, deep = unet_by_hand(plain.family.unet, torch.cat([latents, latents]), timestep, texts, kept)
        empty, prompted = noise.chunk(2)
        return empty + GUIDANCE * (prompted - empty)

    expected = by_hand(plain, predict)
    cached = load_generator(str(tiny_sd_folder), guidance_scale=GUIDANCE, deep_cache_interval=interval)
    torch.testing.assert_close(images_of(cached), expected, rtol=1e-4, atol=1e-5)
    assert (expected - images_of(plain)).abs().max() > 1e-3


@torch.no_grad()
def test_deep_features_of_another_batch_are_not_reused(tiny_sd_folder: Path) -> None:
    """At both ends of the guidance interval the network's batch changes: there the deep blocks run again."""
    options: dict[str, Any] = {"guidance_interval": NOISE_LEVELS, "deep_cache_interval": 100}
    generator = load_generator(str(tiny_sd_folder), **options)
    outer, deep = [], []
    generator.family.unet.conv_in.register_forward_hook(lambda module, inputs, output: outer.append(len(output)))
    generator.family.unet.mid_block.resnets[0].register_forward_hook(lambda *given: deep.append(len(given[2])))
    assert images_of(generator).isfinite().all()
    changes = [after for before, after in zip([0, *outer], outer, strict=False) if before != after]
    assert deep == changes == [2, 4, 2]


def test_a_second_trajectory_reuses_nothing_of_the_first(tiny_sd_folder: Path) -> None:
    generator = load_generator(str(tiny_sd_folder), deep_cache_interval=100)
    first = images_of(generator)
    with torch.no_grad():
        sample(generator, generator.encode(PROMPTS), torch.ones(2, 4, 8, 8), steps=STEPS)
    assert torch.equal(images_of(generator), first)


def test_nothing_is_reused_under_grad(tiny_sd_folder: Path) -> None:
    """Differentiated calls against those of a network that was never changed, all calls being differentiated."""
    gradients = []
    for interval in (1, 100):
        generator = load_generator(str(tiny_sd_folder), deep_cache_interval=interval)
        generator.add_adapter(rank=2, alpha=3, targets=("to_q", "to_v"))
        shake(generator, 6)
        images_of(generator)  # fills the cache
        gradients.append(gradients_of(generator, differentiate_at=set(range(STEPS + 1))))
    assert all(map(torch.equal, *gradients))


# -- what the configuration says of them


def test_nothing_is_approximated_by_default() -> None:
    assert approximations(GenerateConfig()) == []


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("fast-dpm", "20 dpm++ steps instead of 50"),
        ("fast-guidance-interval", "guidance only at noise levels 0.28 to 5.42"),
        ("fast-deepcache", "deep blocks of the UNet computed once in 3 calls"),
    ],
)
def test_each_preset_names_what_it_changes(recipe: str, words: str) -> None:
    assert approximations(resolve(GenerateConfig, recipe, {})) == [words]
