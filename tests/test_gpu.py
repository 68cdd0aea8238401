"""What only a GPU can show: half precision, the compiled networks, and how much fits the memory."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from audited import photographs, write_image_folder
from safetensors.torch import load_file
from torch import Tensor
from trajectories import PROMPTS, STEPS, adapted, draws, images_of

from lbgen.alignment.config import AlignConfig
from lbgen.alignment.run import align
from lbgen.errors import Interrupted
from lbgen.generation.workers.batch_size import batch_that_fits
from lbgen.models.generator import Generator, load_generator
from lbgen.models.sampling import sample
from lbgen.pretraining import loop
from lbgen.pretraining.config import PretrainConfig
from lbgen.pretraining.run import pretrain

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, there is none"),
]


@torch.no_grad()
def drawn(generator: Generator) -> Tensor:
    """The images of `images_of`, drawn on the generator's device, on the CPU."""
    noise, rngs = draws()
    return sample(generator, generator.encode(PROMPTS), noise.to(generator.device), steps=STEPS, rngs=rngs).cpu()


@pytest.fixture(scope="module")
def reference(tiny_sd_folder: Path) -> Tensor:
    """The aligned images in float32 on the CPU, unmerged and eager."""
    return images_of(adapted(tiny_sd_folder))


@pytest.fixture
def run(tmp_path: Path, tiny_sd_folder: Path, tiny_clip_folder: Path) -> Callable[..., Path]:
    """Aligns the miniatures for two updates; the run's folder."""
    (tmp_path / "names.txt").write_text("cat\ndog\nant\n")

    def aligned(**changes: object) -> Path:
        settings: dict = dict(
            output=tmp_path / "run",
            vocabulary=str(tmp_path / "names.txt"),
            generator=str(tiny_sd_folder),
            semantics=str(tiny_clip_folder),
            steps=4,
            differentiated_steps=2,
            rank=2,
            alpha=2,
            max_steps=2,
            batch_size=2,
            evaluation_images=4,
            learning_rate=1e-3,
            guard="off",
            logger="none",
        )
        align(AlignConfig(**settings | changes))
        return tmp_path / "run"

    return aligned


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_every_term_moves_the_adapter_in_half_precision(
    precision: str, compile: bool, run: Callable[..., Path]
) -> None:
    """An adapter's B starts at zero, so what is not zero has been trained."""
    folder = run(precision=precision, compile=compile)
    first, *updates = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(norm > 0 for norm in first["gradient_norms"].values())
    assert len(updates) == 2 and all(update["loss"] is not None for update in updates)
    weights = load_file(folder / "adapter" / "pytorch_lora_weights.safetensors")
    moved = [weight for name, weight in weights.items() if ".lora_B." in name]
    assert moved and all(weight.isfinite().all() and weight.abs().max() > 0 for weight in moved)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_half_precision_has_the_gradient_norms_of_float32(
    gradient_checkpointing: bool, run: Callable[..., Path]
) -> None:
    """Against the same batch in float32; bf16 has three significant digits at each of some hundred operations."""
    norms = []
    for number, precision in enumerate(("fp32", "bf16")):
        output = run(precision=precision, gradient_checkpointing=gradient_checkpointing)
        norms.append(json.loads((output / "metrics.jsonl").read_text().splitlines()[0])["gradient_norms"])
        output.rename(output.with_name(f"run{number}"))
    assert norms[1] == pytest.approx(norms[0], rel=0.3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("merged", [False, True])
def test_half_precision_draws_the_images_of_float32(
    dtype: torch.dtype, merged: bool, tiny_sd_folder: Path, reference: Tensor, tmp_path: Path
) -> None:
    """Merged and not, against float32 on the CPU; the spread of these images is 0.4."""
    adapted(tiny_sd_folder).save_adapter(tmp_path)
    generator = load_generator(str(tiny_sd_folder), dtype=dtype, device="cuda")
    if merged:
        generator.merge_adapter(tmp_path)
        generator.optimize()
    else:
        generator.load_adapter(tmp_path)
    assert (drawn(generator) - reference).abs().mean() < 0.05


def test_the_compiled_sampler_draws_the_images_of_the_eager_one(tiny_sd_folder: Path, reference: Tensor) -> None:
    """With the adapter changed after compilation, against eager float32 on the CPU; a GPU sums in another order."""
    generator = adapted(tiny_sd_folder, device="cuda", merged_sampler=True, compile=True)
    trained = [parameter.detach().clone() for _, parameter in generator.adapter_parameters()]
    with torch.no_grad():
        for _, parameter in generator.adapter_parameters():
            parameter.zero_()
    generator.refresh_sampler()
    assert (drawn(generator) - reference).abs().max() > 0.05  # compiled here, with an adapter that does nothing
    with torch.no_grad():
        for (_, parameter), value in zip(generator.adapter_parameters(), trained, strict=True):
            parameter.copy_(value)
    generator.refresh_sampler()
    torch.testing.assert_close(drawn(generator), reference, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize(
    "options",
    [{"guidance_scale": 1.0}, {"guidance_interval": (0.0, 2.0), "deep_cache_interval": 2}],
    ids=["one CUDA graph", "approximated"],
)
def test_compiled_networks_draw_the_images_of_the_eager_ones(options: dict, tiny_sd_folder: Path) -> None:
    """Against eager float32 on the CPU; PNDM keeps earlier predictions, which the next run of a CUDA graph overwrites.

    Three times: the first runs what was compiled, the next records it, later ones replay.
    """
    expected = images_of(load_generator(str(tiny_sd_folder), **options))
    generator = load_generator(str(tiny_sd_folder), device="cuda", compile=True, **options)
    generator.optimize()
    generator.fixed_batch = len(expected) + 1
    for _ in range(3):
        torch.testing.assert_close(drawn(generator), expected, rtol=1e-3, atol=2e-3)


def test_a_batch_is_found_and_the_generator_stays_as_it_was(tiny_sd_folder: Path) -> None:
    """Everything fits but what is beyond the ceiling; a generator that was never tried draws the same bits."""
    tried, fresh = (load_generator(str(tiny_sd_folder), device="cuda") for _ in range(2))
    assert batch_that_fits(tried, (4, 8, 8), ceiling=5) == 4
    assert torch.equal(drawn(tried), drawn(fresh))


@pytest.mark.parametrize(
    "changes", [{"precision": "bf16", "channels_last": True}, {"precision": "fp16", "compile": True}]
)
def test_a_backbone_is_trained_in_half_precision_and_goes_on(tmp_path, changes):
    """Against chance, on images whose category is their colour; two epochs, and then the others."""
    scenes = photographs(96, seed=0)
    tint = np.where(scenes.categories[:, None] % 2, [120, 0, 0], [0, 0, 120])[:, None, None]
    images = np.clip(scenes.images // 4 + tint, 0, 255).astype(np.uint8)
    folder = write_image_folder(tmp_path / "set", replace(scenes, images=images, categories=scenes.categories % 2))
    settings = {"architecture": "test_convnext", "epochs": 5, "batch_size": 12, "image_size": 32, "held_out": 0.3}
    config = PretrainConfig.from_recipe(
        "micro", output=tmp_path / "run", logger="none", workers=2, **settings, **changes
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "leave_if_asked", stop_after_two)
        with pytest.raises(Interrupted):
            pretrain(folder, config)
    assert pretrain(folder, config).top1 > 0.8


def stop_after_two(state, course, loss_sum):
    if state.progress.epoch == 2:
        raise Interrupted(2, "stopped")
