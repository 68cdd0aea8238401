"""Updates of `lbgen align` made outside its loop, and the independence term alone.

The only module of the benchmarks that knows how an alignment is put together.
"""

from collections.abc import Callable
from itertools import count

import torch
from safetensors.torch import save_file
from torch import Tensor

from lbgen.alignment.config import AlignConfig
from lbgen.alignment.independence.bank import bank_path, bank_places
from lbgen.alignment.independence.term import Independence
from lbgen.alignment.objective import gradient_norms, term_values
from lbgen.alignment.train import start_accelerator
from lbgen.alignment.trainer import Trainer
from lbgen.models.semantics import load_semantics
from lbgen.vocabulary.vocabulary import load_vocabulary


def new_trainer(config: AlignConfig) -> Trainer:
    """A run at its start; the bank of the independence term is made where the run folder has none."""
    vocabulary = load_vocabulary(config.vocabulary, config.qualify_names)
    return Trainer(config, vocabulary, start_accelerator(config), None)


def align_update(config: AlignConfig, full_memory: bool = False) -> Callable[[], dict[str, float]]:
    """One call is one update: what `lbgen align` does between two lines of metrics.

    full_memory: fill the memory of the independence term with noise first.
    """
    trainer, batch_indices = new_trainer(config), count()
    if full_memory:
        fill_memory(trainer)
    return lambda: update(trainer, next(batch_indices))


def warm_up(trainer: Trainer, batches: int) -> None:
    """Updates of the discriminator and of the independence term's state alone."""
    for batch_index in range(batches):
        trainer.update_opponents(trainer.batch(batch_index, differentiate=False), batch_index)


def update(trainer: Trainer, batch_index: int) -> dict[str, float]:
    """One update of the discriminator, the independence term's state and the adapter; returns the losses."""
    batch = trainer.batch(batch_index, differentiate=True)
    trainer.update_opponents(batch, batch_index)
    return trainer.update_adapter(batch, batch_index + 1)


def update_with_norms(trainer: Trainer, batch_index: int) -> dict[str, float]:
    """The same; returns the norm of each weighted term's gradient on the adapter, before it is clipped."""
    batch = trainer.batch(batch_index, differentiate=True)
    trainer.update_opponents(batch, batch_index)
    norms = gradient_norms(trainer.terms, term_values(trainer.terms, batch), trainer.parameters, list, 1.0)
    trainer.update_adapter(batch, batch_index + 1)
    return {name: norms[name] for name, term in trainer.terms.items() if term.weight > 0}


# ---- the independence term ----


def write_noise_bank(config: AlignConfig) -> None:
    """Write noise where a run of this configuration looks for its bank of the base generator's images."""
    vocabulary = load_vocabulary(config.vocabulary, config.qualify_names)
    places = bank_places(config.independence_bank, len(vocabulary))
    features = load_semantics(config.semantics, torch.device("cpu"), torch.float32).dimension
    noise = torch.randn(len(places), features + 3 * config.independence_thumbnail**2)  # (N, L)
    config.output.mkdir(parents=True, exist_ok=True)
    category_indices = torch.tensor([category_index for category_index, _ in places])
    save_file({"looks": noise, "rows": category_indices}, bank_path(config, vocabulary))


def fill_memory(trainer: Trainer) -> None:
    """Let the independence term remember as many updates of noise as its memory holds."""
    term, images = trainer.independence, trainer.global_batch
    if term is None:
        return
    for batch_index in range(trainer.config.independence_memory):
        noise = torch.randn(images, term.directions.shape[1], device=term.directions.device)  # (B, L)
        term.update(noise, torch.randint(len(trainer.vocabulary), (images,), device=noise.device), batch_index)


def new_term(
    config: AlignConfig, texts: Tensor, descriptors: Tensor, category_indices: Tensor, images: int
) -> Independence:
    """The term alone.  (C, D); (N, L) and (N,) of the bank; images: of an update."""
    return Independence(config, texts, descriptors, category_indices, images)


def bank_categories(config: AlignConfig, categories: int) -> Tensor:
    """The category index of each image of the bank, (N,)."""
    return torch.tensor([category_index for category_index, _ in bank_places(config.independence_bank, categories)])


def term_value(term: Independence, descriptors: Tensor, category_indices: Tensor, batch_index: int) -> Tensor:
    """Take in an update's images, (B, L) and (B,), as a run does, and return the term for them."""
    term.update(descriptors.detach(), category_indices, batch_index)
    return term.value(descriptors, category_indices)
