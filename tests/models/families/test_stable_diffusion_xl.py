"""Stable Diffusion XL against diffusers' own pipeline, against a loop by hand, and the checkpoints that are refused."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from miniatures import write_stable_diffusion_xl
from torch import Tensor
from trajectories import PROMPTS, STEPS, adapted, draws, images_of, one_image_of_both

from lbgen.errors import UserError
from lbgen.models.families.stable_diffusion import SCHEDULERS
from lbgen.models.generator import Generator, load_generator
from lbgen.models.sampling import sample

GUIDANCE = 2.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stable_diffusion_xl(tmp_path_factory.mktemp("xl"))


def plain(folder: Path) -> StableDiffusionXLPipeline:
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def images_of_diffusers(pipeline: StableDiffusionXLPipeline, **options: float) -> Tensor:
    """Clamped to [0, 1]."""
    noise, rngs = draws()
    settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "pt"} | options
    return pipeline(PROMPTS, latents=noise, generator=rngs, **settings).images


@pytest.mark.parametrize("scheduler", [None, *SCHEDULERS])
@pytest.mark.parametrize("guidance", [2.0, 0.5])
def test_sampling_equals_the_diffusers_pipeline(scheduler: str | None, guidance: float, folder: Path) -> None:
    pipeline = plain(folder)
    if scheduler is not None:
        kind, settings = SCHEDULERS[scheduler]
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **settings)
    ours = images_of(load_generator(str(folder), scheduler=scheduler, guidance_scale=guidance))
    theirs = images_of_diffusers(pipeline, guidance_scale=guidance)
    torch.testing.assert_close(ours.clamp(0, 1), theirs, rtol=1e-4, atol=2e-5)
    assert ours.std() > 0.05


def test_one_image_without_guidance_is_the_pipelines_to_the_bit(folder: Path) -> None:
    """The arithmetic is the same there."""
    ours, theirs = one_image_of_both(load_generator(str(folder), guidance_scale=1.0), plain(folder))
    assert torch.equal(ours.clamp(0, 1), theirs)


@pytest.mark.parametrize("kind", ["EulerDiscrete", "EulerAncestralDiscrete", "UniPCMultistep"])
def test_a_checkpoints_own_scheduler_is_any_that_diffusers_calls_compatible(
    kind: str, folder: Path, tmp_path: Path
) -> None:
    """Euler's is that of the base checkpoint, its ancestral form that of SDXL Turbo."""
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    before = plain(own).scheduler
    scheduler = getattr(diffusers, f"{kind}Scheduler").from_config(before.config)
    assert type(scheduler) in before.compatibles
    scheduler.save_pretrained(own / "scheduler")
    index = own / "model_index.json"
    index.write_text(index.read_text().replace(type(before).__name__, type(scheduler).__name__))
    ours = images_of(load_generator(str(own), guidance_scale=GUIDANCE))
    torch.testing.assert_close(ours.clamp(0, 1), images_of_diffusers(plain(own)), rtol=1e-4, atol=2e-5)


def test_an_empty_prompt_that_is_encoded_and_one_that_is_zero(tmp_path: Path, folder: Path) -> None:
    encoded = write_stable_diffusion_xl(tmp_path / "encoded", zeros_for_no_prompt=False)
    ours = images_of(load_generator(str(encoded), guidance_scale=GUIDANCE))
    torch.testing.assert_close(ours.clamp(0, 1), images_of_diffusers(plain(encoded)), rtol=1e-4, atol=2e-5)
    assert (ours - images_of(load_generator(str(folder), guidance_scale=GUIDANCE))).abs().max() > 0.01


def test_an_oblong_image_is_told_its_size(folder: Path) -> None:
    generator, pipeline = load_generator(str(folder), guidance_scale=GUIDANCE), plain(folder)
    noise = torch.randn(1, *generator.latent_shape(32, 48), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        ours = sample(generator, generator.encode(PROMPTS[:1]), noise, steps=STEPS)
    theirs = pipeline(
        PROMPTS[:1], height=32, width=48, latents=noise, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
        output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(ours.clamp(0, 1), theirs, rtol=1e-4, atol=2e-5)


def test_normalised_latents_are_brought_back(folder: Path, tmp_path: Path) -> None:
    """Some autoencoders of this format have a mean and a deviation for each channel."""
    changed = Path(shutil.copytree(folder, tmp_path / "normalised"))
    config = changed / "vae/config.json"
    moments = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.1, 0.9, 1.2, 1.0]}
    config.write_text(json.dumps(json.loads(config.read_text()) | moments))
    ours = images_of(load_generator(str(changed), guidance_scale=GUIDANCE))
    torch.testing.assert_close(ours.clamp(0, 1), images_of_diffusers(plain(changed)), rtol=1e-4, atol=2e-5)


def by_hand(generator: Generator, kept: set[int]) -> Tensor:
    """Raw modules in diffusers' order; a stop-gradient on what the network said where a call is not kept."""
    pipeline, (latents, _) = generator.family.pipeline, draws()
    text, _, pooled, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    zeros = torch.zeros_like(text), torch.zeros_like(pooled)
    embeddings, added = torch.cat([zeros[0], text]), torch.cat([zeros[1], pooled])
    sizes = torch.tensor([[32.0, 32, 0, 0, 32, 32]] * len(embeddings))
    kind, settings = SCHEDULERS["ddim"]
    scheduler = kind.from_config(pipeline.scheduler.config, **settings)
    scheduler.set_timesteps(STEPS)
    for index, timestep in enumerate(scheduler.timesteps):
        conditions = {"text_embeds": added, "time_ids": sizes}
        both = pipeline.unet(torch.cat([latents, latents]), timestep, embeddings, added_cond_kwargs=conditions).sample
        empty, prompted = both.chunk(2)
        prediction = empty + GUIDANCE * (prompted - empty)
        if index not in kept:
            prediction = prediction.detach()
        latents = scheduler.step(prediction, timestep, latents).prev_sample
    return pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample / 2 + 0.5


def test_gradients_equal_the_loop_with_explicit_stop_gradients(folder: Path) -> None:
    """Of the UNet's adapter and of those on both text encoders, whose last layers are not used."""
    generator, kept = adapted(folder, scheduler="ddim", guidance_scale=GUIDANCE, text_encoder=True), {1, 3}
    parameters = [parameter for _, parameter in generator.adapter_parameters()]
    images = sample(generator, generator.encode(PROMPTS), draws()[0], steps=STEPS, differentiate_at=kept)
    ours, theirs = (
        torch.autograd.grad(each.square().mean(), parameters, materialize_grads=True)
        for each in (images, by_hand(generator, kept))
    )
    assert any("text_encoder_2" in name for name, _ in generator.adapter_parameters())
    for (name, _), one, other in zip(generator.adapter_parameters(), ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * other.abs().max().item(), msg=name)


@pytest.mark.parametrize("text_encoder", [False, True])
def test_the_adapter_gives_the_same_image_in_the_plain_pipeline_and_merged(
    folder: Path, tmp_path: Path, text_encoder: bool
) -> None:
    generator = adapted(folder, guidance_scale=GUIDANCE, text_encoder=text_encoder)
    generator.save_adapter(tmp_path / "adapter")
    pipeline = plain(folder)
    pipeline.load_lora_weights(str(tmp_path / "adapter"))
    ours = images_of(generator)
    torch.testing.assert_close(ours.clamp(0, 1), images_of_diffusers(pipeline), rtol=1e-4, atol=1e-4)
    merged = load_generator(str(folder), guidance_scale=GUIDANCE)
    merged.merge_adapter(tmp_path / "adapter")
    torch.testing.assert_close(images_of(merged), ours, rtol=1e-3, atol=1e-4)
    assert (ours - images_of(load_generator(str(folder), guidance_scale=GUIDANCE))).abs().max() > 0.01


def test_the_autoencoder_stays_in_single_precision_where_half_overflows(folder: Path) -> None:
    """`force_upcast`, also under autocast as in training; bfloat16 does not overflow."""
    half, single = load_generator(str(folder), dtype=torch.float16), load_generator(str(folder))
    assert half.family.vae.dtype == torch.float32 and half.family.unet.dtype == torch.float16
    assert load_generator(str(folder), dtype=torch.bfloat16).family.vae.dtype == torch.bfloat16
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        ours = half.decode(latents)
    with torch.no_grad():
        assert torch.equal(ours, single.decode(latents))


# -- what is refused


def test_too_many_tokens_are_refused_in_the_encoder_with_the_least_room(folder: Path) -> None:
    """To the first tokenizer "photo" is one token, to the second five."""
    generator, prompt = load_generator(str(folder)), "photo of abcdefgh"
    first, second = (len(tokenizer(prompt).input_ids) for tokenizer in generator.family.tokenizers)
    assert first <= generator.token_limit == 16 < second
    with pytest.raises(UserError, match="abcdefgh"):
        generator.encode([prompt])
    generator.encode(["photo of abcdefg"])


@pytest.mark.parametrize(
    ("part", "change", "expected"),
    [
        ("unet", {"in_channels": 9}, "unet has in_channels 9"),
        ("unet", {"time_cond_proj_dim": 256}, "the guidance scale, as latent consistency models do"),
        ("unet", {"addition_embed_type": None}, "addition_embed_type None, not 'text_time'"),
        ("unet", {"cross_attention_dim": 16}, "texts of 16 channels, text_encoder and text_encoder_2 give 16 + 24"),
        ("text_encoder_2", {"model_type": "t5"}, "text_encoder_2 is of type 't5'"),
    ],
)  # fmt: skip
def test_checkpoints_for_other_uses_are_refused_by_their_configuration(
    folder: Path, tmp_path: Path, part: str, change: dict, expected: str
) -> None:
    changed = Path(shutil.copytree(folder, tmp_path / "changed"))
    config = changed / part / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(UserError) as caught:
        load_generator(str(changed))
    assert expected in str(caught.value) and "a text-to-image checkpoint of Stable Diffusion XL" in str(caught.value)
