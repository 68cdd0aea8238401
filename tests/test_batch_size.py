"""The search for a batch size, with the exception that torch raises where memory is short."""

import pytest
import torch

from lbgen.generation.batch_size import largest_batch


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
