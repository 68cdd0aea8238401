"""Golden numbers: a refactor of the trajectory or of the losses gives what the code gave before it.

The other tests say whether the code is right, each against an independent truth and as closely as that truth allows.
These numbers say only that nothing moved, but they say it of everything at once: images and gradients of `sample()`,
every loss, every term of an update. A change that means to move them records them again and explains itself:

    python tests/test_golden.py

They were recorded in float32 on one CPU thread; another CPU, or more threads, sums in another order, which moves
gradients by some 2e-5 of their norm: hence the tolerance.
"""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from miniatures import write_clip, write_stable_diffusion
from torch import Tensor
from trajectories import PROMPTS, STEPS, adapted, draws, shake

from lbgen.alignment import loop, losses, run
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.objective import term_values
from lbgen.alignment.state import AlignmentState
from lbgen.models.sampling import sample
from lbgen.vocabulary.vocabulary import load_vocabulary

GOLDEN = Path(__file__).with_name("golden.json")
TOLERANCE = 1e-4
"""Of a tensor's norm."""


def conditional_mismatch(residuals: Tensor, memory: Tensor, weights: Tensor, bank: Tensor) -> Tensor:
    """Of a width that is no random draw, for it must be above 0."""
    return losses.conditional_mismatch(residuals, memory, weights, bank, torch.tensor(1.7))


LOSSES = {
    losses.entire_alignment: [(3,)],
    losses.discriminator_loss: [(3,), (3,)],
    losses.individual_alignment: [(3, 5), (3, 5)],
    losses.quality_assurance: [(3,)],
    losses.base_pull: [(2, 3, 4, 4), (2, 3, 4, 4)],
    conditional_mismatch: [(3, 2), (5, 2), (3, 5), (4, 2)],
}
"""Every loss and the shapes of its arguments."""
OBJECTIVES = {
    "paper": {"base_weight": 2.0},
    "released-code": {"normalize_features": False, "discriminator_texts": "released-code"},
    "independent": {"independence_weight": 6.0, "independence_bank": 16, "independence_memory": 2},
}
"""With normalised features and the pull towards the base model; as the released script sees a batch; with the
independence term, two updates remembered."""


def fingerprint(*tensors: Tensor) -> list[float]:
    """The norm of all their values together, and four projections of them on fixed random directions."""
    values = torch.cat([tensor.detach().flatten() for tensor in tensors]).double()
    directions = torch.randn(4, len(values), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return [float(f"{number:.8g}") for number in (values.norm().item(), *(directions @ values).tolist())]


def sample_numbers(folder: Path, scheduler: str) -> dict[str, list[float]]:
    """Images without gradients, then with two calls differentiated: images, and the adapter's gradients."""
    generator = adapted(folder, scheduler=scheduler)
    parameters = [parameter for _, parameter in generator.adapter_parameters()]
    noise, rngs = draws()
    with torch.no_grad():
        images = sample(generator, generator.encode(PROMPTS), noise, steps=STEPS, rngs=rngs)
    numbers = {f"sample, {scheduler}: images": fingerprint(images)}
    for detach_input, name in ((False, "differentiated"), (True, "detached")):
        noise, rngs = draws()
        images = sample(
            generator,
            generator.encode(PROMPTS),
            noise,
            steps=STEPS,
            differentiate_at={1, 3},
            detach_input=detach_input,
            rngs=rngs,
        )
        gradients = torch.autograd.grad(images.square().mean(), parameters)
        numbers[f"sample, {scheduler}, {name}: images"] = fingerprint(images)
        numbers[f"sample, {scheduler}, {name}: gradients"] = fingerprint(*gradients)
    return numbers


def loss_numbers() -> dict[str, list[float]]:
    """Every loss and its gradients, for normal draws."""
    numbers, rng = {}, torch.Generator().manual_seed(7)
    for loss, shapes in LOSSES.items():
        if loss is conditional_mismatch:  # a loss that is gone was given three numbers before it
            torch.randn(3, generator=rng)
        arguments = [torch.randn(shape, generator=rng).requires_grad_() for shape in shapes]
        value = loss(*arguments)
        numbers[f"{loss.__name__}: value"] = fingerprint(value)
        numbers[f"{loss.__name__}: gradients"] = fingerprint(*torch.autograd.grad(value, arguments))
    return numbers


def batch_numbers(sd_folder: Path, clip_folder: Path, output: Path, objective: str) -> dict[str, list[float]]:
    """Every term of one batch and its gradients on an adapter that is not at its start."""
    output.mkdir(exist_ok=True)
    (output / "names.txt").write_text("cat\ndog\nant\nbee\ncup\n")
    settings = {"vocabulary": str(output / "names.txt"), "generator": str(sd_folder), "semantics": str(clip_folder)}
    config = AlignConfig(
        output, **settings, steps=4, differentiated_steps=2, rank=2, alpha=3, batch_size=3, **OBJECTIVES[objective]
    )
    state = AlignmentState(config, load_vocabulary(config.vocabulary), run.start_accelerator(config))
    shake(state.generator, 6)
    if state.independence is not None:
        for batch_index in (1, 2):
            loop.warm_up_step(state, batch_index)
    batch = loop.sample_batch(state, 2, differentiate=True)
    numbers = {f"{objective}: images": fingerprint(batch.images), f"{objective}: scores": fingerprint(batch.scores)}
    for name, value in term_values(state.terms, batch).items():
        numbers[f"{objective}, {name}: value"] = fingerprint(value)
        gradients = torch.autograd.grad(value, state.parameters, retain_graph=True)
        numbers[f"{objective}, {name}: gradients"] = fingerprint(*gradients)
    numbers[f"{objective}: discriminator"] = fingerprint(torch.tensor(loop.update_discriminator(state, batch, 2)))
    return numbers


def measure(sd_folder: Path, clip_folder: Path, output: Path) -> dict[str, list[float]]:
    numbers = loss_numbers()
    for scheduler in ("ddpm", "ddim", "pndm", "dpm++"):
        numbers |= sample_numbers(sd_folder, scheduler)
    for objective in OBJECTIVES:
        numbers |= batch_numbers(sd_folder, clip_folder, output, objective)
    return numbers


def test_nothing_moved(tiny_sd_folder, tiny_clip_folder, tmp_path):
    """Against golden.json; all that moved is named."""
    golden = json.loads(GOLDEN.read_text())
    measured = measure(tiny_sd_folder, tiny_clip_folder, tmp_path)
    assert list(measured) == list(golden)
    moved = [name for name in golden if measured[name] != pytest.approx(golden[name], abs=TOLERANCE * golden[name][0])]
    assert moved == []


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        numbers = measure(write_stable_diffusion(root / "sd"), write_clip(root / "clip"), root / "run")
    GOLDEN.write_text("{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in numbers.items()) + "\n}\n")
