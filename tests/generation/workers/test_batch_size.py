"""The search for a batch size, with the exception that torch raises where memory is short."""

import pytest
import torch
from trajectories import images_of

from lbgen.errors import UserError
from lbgen.generation.workers.batch_size import HEADROOM, batch_that_fits, largest_batch
from lbgen.models.generator import Generator


@pytest.mark.parametrize(
    ("memory", "ceiling", "expected", "tried"),
    [
        (23, 64, 16, [1, 2, 4, 8, 16, 32]),
        (16, 64, 16, [1, 2, 4, 8, 16, 32]),
        (1000, 64, 64, [1, 2, 4, 8, 16, 32, 64]),
        (1000, 48, 32, [1, 2, 4, 8, 16, 32]),
        (0, 64, 0, [1]),
    ],
)
def test_the_batch_is_doubled_while_memory_lasts(memory: int, ceiling: int, expected: int, tried: list[int]) -> None:
    batches = []

    def try_batch(batch: int) -> None:
        batches.append(batch)
        if batch > memory:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    assert largest_batch(try_batch, ceiling) == expected
    assert batches == tried


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    def try_batch(batch: int) -> None:
        raise RuntimeError("cuDNN error")

    with pytest.raises(RuntimeError, match="cuDNN error"):
        largest_batch(try_batch, 64)


def test_the_generators_own_batch_is_found_with_memory_to_spare(
    tiny_generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for a GPU that decodes no more than 5 images at once."""
    allowed, before = [], images_of(tiny_generator)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: allowed.append(share))

    def short_of_memory(decoder: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if len(inputs[0]) > 5:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    hook = tiny_generator.family.vae.decoder.register_forward_pre_hook(short_of_memory)
    assert batch_that_fits(tiny_generator, (4, 8, 8)) == 4
    assert allowed == [1 - HEADROOM, 1.0]
    hook.remove()
    assert torch.equal(images_of(tiny_generator), before)


def test_a_gpu_too_small_for_one_image_is_refused(tiny_generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    def short_of_memory(*given: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: None)
    tiny_generator.family.unet.register_forward_pre_hook(short_of_memory)
    with pytest.raises(UserError, match="needs more memory than this GPU has; try --precision bf16"):
        batch_that_fits(tiny_generator, (4, 8, 8))
