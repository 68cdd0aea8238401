"""What Generator does for a family that is nothing like Stable Diffusion, against loops written out by hand.

The family matches flows (arXiv 2210.02747), conditions on two tensors and calls its parts by other names. Its networks
are those of the miniature.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from torch import Tensor
from trajectories import PROMPTS, STEPS, TARGETS, draws, plain, shake

from lbgen.errors import UserError
from lbgen.models import families
from lbgen.models.families.family import Conditioning, Schedule
from lbgen.models.generator import Generator, load_generator
from lbgen.models.sampling import sample

GUIDANCE, NOISE_LEVELS = 3.0, (0.3, 3.0)


class Flows:
    """Latents are sigma noise + (1 - sigma) image, sigma = timestep / 1000; the network predicts noise - image."""

    title = "Flows"
    network_name = "transformer"
    text_encoder_targets = ("q_proj",)

    def __init__(
        self, name: str, where: str, *, dtype: torch.dtype, device: torch.device, scheduler: str | None
    ) -> None:
        self.name, self.device, self.dtype = name, device, dtype
        self.pipeline = plain(Path(where))
        self.network, self.vae = self.pipeline.unet, self.pipeline.vae
        self.text_encoders = {"text_encoder_2": self.pipeline.text_encoder}
        self.token_limit, self.default_size = 16, (32, 32)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return 4, height // 4, width // 4

    def count_tokens(self, prompt: str) -> int:
        return len(self.pipeline.tokenizer(prompt).input_ids)

    def token_ids(self, prompt: str) -> tuple[tuple[int, ...], ...]:
        return (tuple(self.pipeline.tokenizer(prompt).input_ids),)

    def encode(self, prompts: list[str]) -> Conditioning:
        tokens = self.pipeline.tokenizer(prompts, padding="max_length", max_length=16, return_tensors="pt")
        text = self.pipeline.text_encoder(tokens.input_ids)[0]
        return Conditioning({"text": text, "lengths": torch.tensor([float(len(prompt)) for prompt in prompts])})

    def timesteps(self, steps: int, latent_shape: tuple[int, int, int]) -> Schedule:
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(steps)
        return Schedule(scheduler.timesteps, 1.0, scheduler)

    def noise_level(self, timestep: Tensor) -> float:
        sigma = float(timestep) / 1000
        return sigma / (1 - sigma) if sigma < 1 else float("inf")

    def predict(self, network: Any, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        text, lengths = conditioning.tensors["text"], conditioning.tensors["lengths"]
        return network(latents, timestep, text).sample + 0.1 * lengths.view(-1, 1, 1, 1)

    def to_decoder(self, latents: Tensor) -> Tensor:
        return latents / 1.5 + 0.1


@pytest.fixture
def folder(tiny_sd_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The miniature, which is now taken for a checkpoint of the other family."""
    monkeypatch.setitem(families.FAMILIES, "StableDiffusionPipeline", Flows)
    return str(tiny_sd_folder)


def by_hand(family: Any, kept: set[int] | None = None) -> Tensor:
    """Euler steps from sigma 1 to 0, with guidance within NOISE_LEVELS; a stop-gradient where a call is not kept."""
    sigmas = [*torch.linspace(1, 1e-3, STEPS).tolist(), 0.0]
    (latents, _), rows = draws(), len(PROMPTS)
    both = family.encode([""] * rows + PROMPTS)
    for index, (sigma, following) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        timestep = torch.tensor(1000 * sigma)
        empty, prompted = family.predict(family.network, torch.cat([latents, latents]), timestep, both).chunk(2)
        guided = sigma < 1 and NOISE_LEVELS[0] < sigma / (1 - sigma) <= NOISE_LEVELS[1]
        velocity = empty + GUIDANCE * (prompted - empty) if guided else prompted
        if kept is not None and index not in kept:
            velocity = velocity.detach()
        latents = latents + (following - sigma) * velocity
    return family.vae.decode(latents / 1.5 + 0.1).sample / 2 + 0.5


def generator_of(folder: str) -> Generator:
    generator = load_generator(folder, guidance_scale=GUIDANCE, guidance_interval=NOISE_LEVELS)
    generator.add_adapter(rank=2, alpha=3, targets=TARGETS, text_encoder=True)
    shake(generator, 6)
    return generator


def test_images_and_gradients_are_those_of_the_flow_by_hand(folder: str) -> None:
    generator, kept = generator_of(folder), {1, 3}
    noise, rngs = draws()
    conditioning = generator.encode(PROMPTS)
    images = sample(generator, conditioning, noise, steps=STEPS, differentiate_at=kept, rngs=rngs)
    expected = by_hand(generator.family, kept)
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-5)
    parameters = [parameter for _, parameter in generator.adapter_parameters()]
    ours, theirs = (torch.autograd.grad(each.square().mean(), parameters) for each in (images, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * other.abs().max().item())


@torch.no_grad()
def test_rows_of_a_conditioning_are_those_of_its_prompts(folder: str) -> None:
    """Against the prompts encoded in that order."""
    generator = load_generator(folder)
    chosen, encoded = generator.encode(PROMPTS)[[1, 0, 1]], generator.encode([PROMPTS[1], PROMPTS[0], PROMPTS[1]])
    assert len(chosen) == 3 and chosen.tensors.keys() == {"text", "lengths"}
    for ours, theirs in ((chosen, encoded), (chosen.unconditional, encoded.unconditional)):
        for name in ours.tensors:
            torch.testing.assert_close(ours.tensors[name], theirs.tensors[name])


def test_the_adapter_file_calls_the_parts_by_the_familys_names(folder: str, tmp_path: Path) -> None:
    """B is stored times 3 / 2, alpha over rank."""
    generator, again = generator_of(folder), load_generator(folder)
    generator.save_adapter(tmp_path)
    names = {name.split(".")[0] for name in load_file(tmp_path / "pytorch_lora_weights.safetensors")}
    assert names == {"transformer", "text_encoder_2"}
    again.load_adapter(tmp_path)
    pairs = zip(generator.adapter_parameters(), again.adapter_parameters(), strict=True)
    for (name, mine), (again_name, theirs) in pairs:
        assert name == again_name and torch.equal(mine * 3 / 2 if "lora_B" in name else mine, theirs)


def test_an_adapter_of_another_family_is_refused(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator_of(folder).save_adapter(tmp_path)
    monkeypatch.undo()
    with pytest.raises(UserError, match="of neither unet nor text_encoder; give an adapter written by lbgen"):
        load_generator(folder).load_adapter(tmp_path)
