"""Images that are not finite stop a run, and the message says why. Noise may be infinite where the schedule says so."""

import json
import shutil
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler
from trajectories import PROMPTS, STEPS, adapted, images_of, images_of_diffusers, plain

from lbgen.errors import UserError
from lbgen.models.checkpoints.suited import DIFFUSION_SCHEDULERS, WITHOUT_ZERO_SNR
from lbgen.models.families.stable_diffusion import SCHEDULERS
from lbgen.models.generator import Generator, load_generator
from lbgen.models.sampling import render_images

KEYS = [("fish", 0, 0), ("cup", 7, 1)]
PURE_NOISE = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
"""The schedule of arXiv 2305.08891: the last timestep has no signal, and sampling begins there."""


def refusal(generator: Generator, **options: Any) -> str:
    with pytest.raises(UserError) as caught, torch.no_grad():
        render_images(generator, KEYS, PROMPTS, seed=1, steps=2, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(value: float, tiny_sd_folder: Path) -> None:
    for part, name in (("unet", "mid_block.resnets.0.conv1.weight"), ("vae", "decoder.conv_out.bias")):
        generator = load_generator(str(tiny_sd_folder))
        getattr(generator.family, part).get_parameter(name).data.view(-1)[1] = value
        message = refusal(generator)
        assert message.startswith(f"generator {tiny_sd_folder}: image 0 of fish is not finite; {part}.{name} is not")


def test_only_the_image_that_is_not_finite_is_named(tiny_generator: Generator) -> None:
    """A hook spoils one image of two: the noise of the second."""
    tiny_generator.family.unet.conv_in.register_forward_hook(
        lambda module, inputs, output: output.index_fill(0, torch.tensor([1, 3]), float("nan"))
    )
    assert "image 7 of cup is not finite; the trajectory has diverged: choose" in refusal(tiny_generator)


def test_half_precision_that_overflows_is_named(tiny_sd_folder: Path) -> None:
    """Weights of the decoder that float32 bears and float16 does not."""
    for dtype in (torch.float16, torch.float32):
        generator = load_generator(str(tiny_sd_folder), dtype=dtype)
        generator.family.vae.decoder.conv_in.weight.data.fill_(3e4)
        if dtype == torch.float16:
            assert "float16 overflows beyond 65504: choose --precision bf16 or fp32" in refusal(generator)
        else:
            assert render_images(generator, KEYS, PROMPTS, seed=1, steps=2).isfinite().all()


def test_an_adapter_that_has_diverged_is_named_and_its_base_is_not(tiny_sd_folder: Path) -> None:
    generator = adapted(tiny_sd_folder)
    for name, parameter in generator.adapter_parameters():
        if "lora_B" in name:
            parameter.data.mul_(1e38)
    assert "the adapter has diverged: choose another --output and a lower --learning-rate" in refusal(generator)
    generator.adapter_parameters()[0][1].data.fill_(float("nan"))
    assert "the adapter has diverged" in refusal(generator)
    with generator.adapter_enabled(False):
        assert render_images(generator, KEYS, PROMPTS, seed=1, steps=2).isfinite().all()


# ---- schedules that begin at pure noise ----


@pytest.fixture
def pure_noise(tiny_sd_v_folder: Path, tmp_path: Path) -> Path:
    """A checkpoint that predicts velocity and was trained down to pure noise."""
    return with_schedule(tiny_sd_v_folder, tmp_path / "pure-noise", **PURE_NOISE)


def with_schedule(folder: Path, copy: Path, **settings: object) -> Path:
    shutil.copytree(folder, copy)
    DDIMScheduler.from_config(plain(folder).scheduler.config, clip_sample=False, **settings).save_pretrained(
        copy / "scheduler"
    )
    index = copy / "model_index.json"
    index.write_text(index.read_text().replace("PNDMScheduler", "DDIMScheduler"))
    return copy


@pytest.mark.parametrize("scheduler", [None, "ddpm", "ddim", "dpm++"])
def test_a_schedule_down_to_pure_noise_is_kept(scheduler: str | None, pure_noise: Path) -> None:
    """Against diffusers' pipeline with the same scheduler."""
    pipeline = plain(pure_noise)
    if scheduler is not None:
        kind, settings = SCHEDULERS[scheduler]
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **settings)
    generator = load_generator(str(pure_noise), scheduler=scheduler)
    assert generator.timesteps(STEPS).timesteps[0] == 999
    theirs = images_of_diffusers(pipeline, guidance_scale=2.0)
    torch.testing.assert_close(images_of(generator).clamp(0, 1), theirs, rtol=1e-4, atol=2e-5)


def test_a_scheduler_that_would_drop_it_is_refused(pure_noise: Path) -> None:
    """Before the weights are read, which here are none."""
    for weights in pure_noise.rglob("*.safetensors"):
        weights.write_bytes(b"no weights")
    message = f"generator {pure_noise}: pndm would drop rescale_betas_zero_snr, with which it was trained; "
    message += r"choose --scheduler ddpm, ddim, dpm\+\+, and for a dataset or a run that was begun with another, a new"
    with pytest.raises(UserError, match=message):
        load_generator(str(pure_noise), scheduler="pndm")
    takes = [name for name, (kind, _) in SCHEDULERS.items() if "rescale_betas_zero_snr" in signature(kind).parameters]
    assert sorted(takes) == sorted(DIFFUSION_SCHEDULERS) and {*takes, *WITHOUT_ZERO_SNR} == {*SCHEDULERS}


def test_the_checkpoints_own_scheduler_may_not_drop_it_either(pure_noise: Path) -> None:
    """A scheduler's file keeps the settings that its class does not know."""
    kept = json.loads((pure_noise / "scheduler/scheduler_config.json").read_text())
    PNDMScheduler.from_config(kept).save_pretrained(pure_noise / "scheduler")
    index = pure_noise / "model_index.json"
    index.write_text(index.read_text().replace("DDIMScheduler", "PNDMScheduler"))
    with pytest.raises(UserError, match="PNDMScheduler would drop rescale_betas_zero_snr"):
        load_generator(str(pure_noise))
    assert load_generator(str(pure_noise), scheduler="ddim").timesteps(STEPS).timesteps[0] == 999


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpm++"])
def test_noise_cannot_be_predicted_where_there_is_nothing_else(
    scheduler: str, tiny_sd_folder: Path, tmp_path: Path
) -> None:
    folder = with_schedule(tiny_sd_folder, tmp_path / "epsilon", **PURE_NOISE)
    with pytest.raises(UserError, match=f"generator {folder}: .* timestep 999 is pure noise.*v_prediction") as caught:
        load_generator(str(folder), scheduler=scheduler).check_trajectory(STEPS)
    assert "\n" not in str(caught.value)


def test_trailing_timesteps_are_those_of_every_scheduler(tiny_sd_v_folder: Path, tmp_path: Path) -> None:
    """Table 2 of arXiv 2305.08891 for 5 of 1,000 steps; PNDM asks twice at the second."""
    folder = with_schedule(tiny_sd_v_folder, tmp_path / "trailing", timestep_spacing="trailing")
    for scheduler in SCHEDULERS:
        timesteps = load_generator(str(folder), scheduler=scheduler).timesteps(5).timesteps.tolist()
        assert sorted(set(timesteps), reverse=True) == [999, 799, 599, 399, 199]


def test_infinite_noise_is_above_every_guidance_interval(pure_noise: Path) -> None:
    """At the first call nothing is left of the signal: the network is asked without guidance."""
    seen: list[int] = []
    for interval, first in (((1.0, 3.0), 2), ((1.0, float("inf")), 4)):
        generator = load_generator(str(pure_noise), scheduler="ddim", guidance_interval=interval)
        generator.family.unet.conv_in.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
        assert images_of(generator).isfinite().all()
        assert seen[0] == first and set(seen) == {2, 4}
        seen.clear()


def test_a_prediction_that_the_scheduler_cannot_read_is_refused(tiny_sd_folder: Path, tmp_path: Path) -> None:
    for prediction, scheduler in (("sample", "pndm"), ("flow_prediction", "ddim"), ("noise", "ddpm")):
        folder = with_schedule(tiny_sd_folder, tmp_path / prediction, prediction_type=prediction)
        with pytest.raises(UserError, match=f"generator {folder}: {scheduler} cannot sample .* predicts {prediction}"):
            load_generator(str(folder), scheduler=scheduler)
    assert images_of(load_generator(str(tmp_path / "sample"), scheduler="ddim")).isfinite().all()


def test_a_spacing_that_no_scheduler_knows_is_one_line(tiny_sd_folder: Path, tmp_path: Path) -> None:
    folder = with_schedule(tiny_sd_folder, tmp_path / "middle", timestep_spacing="middle")
    for scheduler in SCHEDULERS:
        with pytest.raises(UserError, match="scheduler_config.json: middle is not supported") as caught:
            load_generator(str(folder), scheduler=scheduler).check_trajectory(STEPS)
        assert "\n" not in str(caught.value)
