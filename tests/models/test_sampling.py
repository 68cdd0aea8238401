"""The trajectory against loops written out by hand over the raw diffusers modules."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, PNDMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from trajectories import PROMPTS, TARGETS, adapted, draws

from lbgen.errors import UserError
from lbgen.models.generator import Generator
from lbgen.models.noise import image_noise
from lbgen.models.sampling import differentiated_indices, sample, start_count

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SCHEDULERS = {
    "pndm": lambda: PNDMScheduler(**BETAS, skip_prk_steps=True),
    "ddim": lambda: DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False),
    "ddpm": lambda: DDPMScheduler(**BETAS, clip_sample=False),
    "dpm++": lambda: DPMSolverMultistepScheduler(**BETAS, timestep_spacing="leading"),
}
STEPS, GUIDANCE = 6, 2.0


@pytest.fixture(params=SCHEDULERS)
def generator(request: pytest.FixtureRequest, tiny_sd_folder: Path) -> Generator:
    generator = adapted(tiny_sd_folder, scheduler=request.param, guidance_scale=GUIDANCE)
    generator.scheduler_name = request.param
    return generator


def by_hand(generator: Generator, kept: set[int], detach_input: bool) -> Tensor:
    """Every call under grad; where the call is not kept, an explicit stop-gradient on what the network said."""
    pipeline, scheduler = generator.family.pipeline, SCHEDULERS[generator.scheduler_name]()
    tokens = pipeline.tokenizer(["", "", *PROMPTS], padding="max_length", max_length=16, return_tensors="pt")
    embeddings = pipeline.text_encoder(tokens.input_ids)[0]
    latents, rngs = draws()
    scheduler.set_timesteps(STEPS)
    for index, timestep in enumerate(scheduler.timesteps):
        seen = latents.detach() if detach_input else latents
        empty, prompted = pipeline.unet(torch.cat([seen, seen]), timestep, embeddings).sample.chunk(2)
        prediction = empty + GUIDANCE * (prompted - empty)
        if index not in kept:
            prediction = prediction.detach()
        if generator.scheduler_name == "ddpm":
            latents = scheduler.step(prediction, timestep, latents, generator=rngs).prev_sample
        else:
            latents = scheduler.step(prediction, timestep, latents).prev_sample
    return pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample / 2 + 0.5


@pytest.mark.parametrize(
    ("kept", "detach_input"),
    [(set(range(STEPS + 1)), False), ({1, 3, 5}, False), ({1, 3, 5}, True), ({0}, False), ({5}, True)],
    ids=["all", "every other", "every other, detached", "the first", "the last, detached"],
)
def test_images_and_gradients_equal_the_loop_with_explicit_stop_gradients(
    generator: Generator, kept: set[int], detach_input: bool
) -> None:
    noise, rngs = draws()
    images = sample(
        generator,
        generator.encode(PROMPTS),
        noise,
        steps=STEPS,
        differentiate_at=kept,
        detach_input=detach_input,
        rngs=rngs,
    )
    expected = by_hand(generator, kept, detach_input)
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-5)

    parameters = [parameter for _, parameter in generator.adapter_parameters()]
    weights = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    measured = torch.autograd.grad((images * weights).sum(), parameters)
    truth = torch.autograd.grad((expected * weights).sum(), parameters)
    assert all(gradient.abs().max() > 0 for gradient in truth)
    for (name, _), ours, theirs in zip(generator.adapter_parameters(), measured, truth, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item(), msg=name)


def test_nothing_is_recorded_without_differentiated_calls(tiny_generator: Generator) -> None:
    tiny_generator.add_adapter(rank=2, alpha=2, targets=TARGETS)
    assert not sample(tiny_generator, tiny_generator.encode(PROMPTS), draws()[0], steps=2).requires_grad


def test_a_second_trajectory_remembers_nothing_of_the_first(generator: Generator) -> None:
    """PNDM and DPM++ keep earlier predictions: the same noise must give the same bits again."""
    conditioning = generator.encode(PROMPTS)
    with torch.no_grad():
        first, second = (
            sample(generator, conditioning, noise, steps=4, rngs=rngs) for noise, rngs in (draws(), draws())
        )
    assert torch.equal(first, second)


def test_asking_for_timesteps_changes_nothing(generator: Generator) -> None:
    """A schedule of other steps is asked for at every call: the images are those of an undisturbed trajectory."""
    conditioning = generator.encode(PROMPTS)
    images = []
    with torch.no_grad():
        for disturbed in (False, True):
            if disturbed:
                generator.family.unet.register_forward_pre_hook(lambda *_: generator.timesteps(3) and None)
            noise, rngs = draws()
            images.append(sample(generator, conditioning, noise, steps=STEPS, rngs=rngs))
    assert torch.equal(*images)


def test_an_image_does_not_depend_on_its_companions(generator: Generator) -> None:
    """Each row with its own generator alone, in reverse order, against the batch."""
    conditioning, (noise, rngs) = generator.encode(PROMPTS), draws()
    with torch.no_grad():
        together = sample(generator, conditioning, noise, steps=4, rngs=rngs)
        noise, rngs = draws()
        for row in (1, 0):
            alone = sample(generator, conditioning[[row]], noise[[row]], steps=4, rngs=[rngs[row]])
            torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


def test_pndm_makes_one_call_more_than_steps(tiny_generator: Generator) -> None:
    assert len(tiny_generator.timesteps(50)) == 51


def test_the_papers_rule_for_50_steps_and_5_gradients() -> None:
    """METHOD of the released script: interval 10, start drawn in [0, 9]."""
    assert start_count(50, 5) == 10
    assert differentiated_indices(50, 5, 9) == {9, 19, 29, 39, 49}


@given(st.data())
def test_differentiated_calls_are_evenly_spaced_and_exist(data: st.DataObject) -> None:
    calls = data.draw(st.integers(1, 200))
    count = data.draw(st.integers(1, calls))
    start = data.draw(st.integers(0, start_count(calls, count) - 1))
    indices = sorted(differentiated_indices(calls, count, start))
    assert len(indices) == count and indices[0] == start and indices[-1] < calls
    assert {after - before for before, after in zip(indices, indices[1:], strict=False)} <= {calls // count}
    if start == start_count(calls, count) - 1:
        assert indices[-1] == calls - 1  # the last start reaches the last call


def test_more_gradients_than_calls_are_refused() -> None:
    with pytest.raises(UserError, match="differentiated_steps is 8, the trajectory has 7"):
        start_count(7, 8)


def test_noise_is_standard_normal_and_belongs_to_its_key_alone() -> None:
    keys = [(0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1)]
    noises = [image_noise(*key, (4, 64, 64))[0] for key in keys]
    torch.randn(7)  # other randomness in between changes nothing
    for key, noise in reversed(list(zip(keys, noises, strict=True))):
        assert torch.equal(image_noise(*key, (4, 64, 64))[0], noise)
    flat = torch.stack(noises).flatten(1)
    torch.testing.assert_close(flat.mean(dim=1), torch.zeros(5), rtol=0, atol=0.03)
    torch.testing.assert_close(torch.corrcoef(flat), torch.eye(5), rtol=0, atol=0.03)
    torch.testing.assert_close(flat.std(dim=1), torch.ones(5), rtol=0, atol=0.03)


def test_an_images_later_draws_differ_from_its_noise() -> None:
    noise, rng = image_noise(0, "a", 0, 0, (4, 64, 64))
    later = torch.randn(noise.shape, generator=rng)
    assert abs(torch.corrcoef(torch.stack([noise.flatten(), later.flatten()]))[0, 1]) < 0.03
