"""The compiled networks on a CPU. Graphs are captured and guarded as ever, then run by torch itself: generating code
takes minutes. tests/test_gpu.py has the whole of it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from trajectories import PROMPTS, STEPS, adapted, draws, gradients_of, images_of

from lbgen.models.generator import Generator, load_generator
from lbgen.models.sampling import sample


@pytest.fixture
def captured() -> Iterator[CompileCounter]:
    """Counts the graphs that were captured since the test began."""
    torch._dynamo.reset()
    counter = CompileCounter()
    with torch.compiler.set_stance("default", force_backend=counter):
        yield counter
    torch._dynamo.reset()


@torch.no_grad()
def first_image(generator: Generator) -> Tensor:
    (noise, rngs), conditioning = draws(), generator.encode(PROMPTS[:1])
    return sample(generator, conditioning, noise[:1], steps=STEPS, rngs=rngs[:1])


APPROXIMATED = {"guidance_interval": (0.0, 2.0), "deep_cache_interval": 2}


@pytest.mark.parametrize(
    ("options", "graphs"),
    [({}, 2), (APPROXIMATED, 5)],
    ids=["the UNet and the decoder", "the UNet whole and not, guided and not, and the decoder"],
)
def test_every_batch_runs_the_graphs_of_the_first(
    options: dict[str, Any], graphs: int, tiny_sd_folder: Path, captured: CompileCounter
) -> None:
    """A smaller batch is filled up; its images are those of the eager networks, which draw it alone."""
    compiled, eager = (load_generator(str(tiny_sd_folder), compile=compile, **options) for compile in (True, False))
    compiled.optimize()
    eager.optimize()
    compiled.fixed_batch = len(PROMPTS)
    for draw in (images_of, first_image, images_of):
        torch.testing.assert_close(draw(compiled), draw(eager), rtol=1e-4, atol=1e-5)
        assert captured.frame_count == graphs


def test_gradients_take_the_eager_networks(tiny_sd_folder: Path, captured: CompileCounter) -> None:
    """Against a generator that is not compiled; without grad, the merged copy and the decoder are."""
    compiled, eager = (adapted(tiny_sd_folder, merged_sampler=True, compile=compile) for compile in (True, False))
    assert all(map(torch.equal, gradients_of(compiled), gradients_of(eager)))
    torch.testing.assert_close(images_of(compiled), images_of(eager), rtol=1e-4, atol=1e-5)
    assert captured.frame_count == 2
