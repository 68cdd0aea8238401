"""Updates of `lbgen align` made outside its loop, and the independence term alone.

The only module of the benchmarks that knows how an alignment is put together.
"""

from collections.abc import Callable
from itertools import count
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import Tensor

from lbgen.alignment import loop
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.independence.bank import bank_images, bank_path
from lbgen.alignment.independence.term import Independence
from lbgen.alignment.objective import Term, gradient_norms, total_loss
from lbgen.alignment.run import start_accelerator
from lbgen.alignment.state import AlignmentState
from lbgen.models.semantics import load_semantics
from lbgen.vocabulary.vocabulary import load_vocabulary


def new_state(config: AlignConfig) -> AlignmentState:
    """A run at its start; the bank of the independence term is made where the run folder has none."""
    return AlignmentState(config, load_vocabulary(config.vocabulary, config.qualify_names), start_accelerator(config))


def align_update(config: AlignConfig, full_memory: bool = False) -> Callable[[], dict[str, float]]:
    """One call is one update: what `lbgen align` does between two lines of metrics.

    full_memory: fill the memory of the independence term with noise first.
    """
    state, batch_indices = new_state(config), count()
    if full_memory:
        fill_memory(state)
    return lambda: loop.training_step(state, next(batch_indices))


def update_with_norms(state: AlignmentState, batch_index: int) -> dict[str, float]:
    """One update; returns the norm of each weighted term's gradient on the adapter, before it is clipped."""
    norms: dict[str, float] = {}

    def measured_loss(terms: dict[str, Term], values: dict[str, Tensor]) -> Tensor:
        norms.update(gradient_norms(terms, values, state.parameters, list, 1.0))
        return total_loss(terms, values)

    with patch.object(loop, "total_loss", measured_loss):
        loop.training_step(state, batch_index)
    return {name: norms[name] for name, term in state.terms.items() if term.weight > 0}


# ---- the independence term ----


def write_noise_bank(config: AlignConfig) -> None:
    """Write noise where a run of this configuration looks for its bank of the base generator's images."""
    vocabulary = load_vocabulary(config.vocabulary, config.qualify_names)
    images = bank_images(config.independence_bank, len(vocabulary))
    features = load_semantics(config.semantics, torch.device("cpu"), torch.float32).dimension
    noise = torch.randn(len(images), features + 3 * config.independence_thumbnail**2)  # (N, L)
    config.folder.mkdir(parents=True, exist_ok=True)
    category_indices = torch.tensor([category_index for category_index, _ in images])
    save_file({"looks": noise, "rows": category_indices}, bank_path(config, vocabulary))


def fill_memory(state: AlignmentState) -> None:
    """Let the independence term remember as many updates of noise as its memory holds."""
    term, images = state.independence, state.progress.images_per_update
    if term is None:
        return
    for _ in range(state.config.independence_memory):
        noise = torch.randn(images, term.directions.shape[1], device=term.directions.device)  # (B, L)
        term.remember(noise, torch.randint(len(state.vocabulary), (images,), device=noise.device))


def new_term(
    config: AlignConfig, texts: Tensor, descriptors: Tensor, category_indices: Tensor, images: int
) -> Independence:
    """The term alone.  (C, D); (N, L) and (N,) of the bank; images: of an update."""
    return Independence(config, texts, descriptors, category_indices, images)


def bank_categories(config: AlignConfig, categories: int) -> Tensor:
    """The category index of each image of the bank, (N,)."""
    return torch.tensor([category_index for category_index, _ in bank_images(config.independence_bank, categories)])


def term_value(term: Independence, descriptors: Tensor, category_indices: Tensor) -> Tensor:
    """Remember an update's images, (B, L) and (B,), as a run does, and return the term for them."""
    term.remember(descriptors.detach(), category_indices)
    return term.value(descriptors, category_indices)
