"""The objective as a table of named, weighted terms, whose meaning the training loop does not need to know."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lbgen.alignment.config import AlignConfig
from lbgen.alignment.discriminator import Discriminator, JointDiscriminator
from lbgen.alignment.independence.term import Independence
from lbgen.alignment.losses import base_pull, entire_alignment, individual_alignment, quality_assurance
from lbgen.configuration.documentation import Documented
from lbgen.configuration.extensions import find
from lbgen.errors import UserError


@dataclass(frozen=True)
class Batch(Documented):
    """The inputs of the terms for one batch of B images.  D feature channels."""

    images: Tensor
    """(B, 3, H, W), nominally in [0, 1]."""
    features: Tensor
    """(B, D), unit norm."""
    discriminator_features: Tensor
    """(B, D): equal to `features`, or the features before normalisation."""
    text_features: Tensor
    """(B, D), unit norm: row i is the text of image i's own category."""
    scores: Tensor
    """(B,) in [1, 5]; empty without a quality scorer."""
    base_images: Tensor
    """(B, 3, H, W): the base model's images of the same noise; empty if no term needs them."""
    category_indices: Tensor
    """(B,) index of each image's category in the vocabulary."""


@dataclass(frozen=True)
class Term:
    weight: float
    value: Callable[[Batch], Tensor]
    """Returns a scalar."""
    zero_at_start: bool = False
    """Whether a gradient of zero is correct for this term as long as the adapter is zero."""
    is_extra: bool = False
    """Whether it is one of --extra-terms instead of lbgen's own."""


def objective(
    config: AlignConfig,
    discriminator: Discriminator | JointDiscriminator,
    independence: Independence | None = None,
) -> dict[str, Term]:
    """L = L_en + L_in + lambda_1 L_q (lbGen section 3) and our own terms, with the weights of the config."""
    terms = {
        "entire": Term(
            config.entire_weight, lambda batch: entire_alignment(discriminator(batch.discriminator_features))
        ),
        "individual": Term(
            config.individual_weight, lambda batch: individual_alignment(batch.features, batch.text_features)
        ),
    }
    if config.quality != "none":
        terms["quality"] = Term(config.quality_weight, lambda batch: quality_assurance(batch.scores))
    if config.base_weight > 0:
        terms["base"] = Term(
            config.base_weight, lambda batch: base_pull(batch.images, batch.base_images), zero_at_start=True
        )
    if independence is not None:
        terms["independence"] = Term(
            config.independence_weight,
            lambda batch: independence.value(
                independence.descriptors(batch.features, batch.images), batch.category_indices
            ),
        )
    for name, weight in config.extra_weights.items():
        terms[name] = Term(weight, checked_term(name, find("terms", name, {})), is_extra=True)
    return terms


def checked_term(name: str, function: Callable[[Batch], Tensor] | None) -> Callable[[Batch], Tensor]:
    """The function of an extra term, which now raises UserError for a result that is not a scalar."""
    assert function is not None, name  # `ensure_terms` has found it

    def value(batch: Batch) -> Tensor:
        try:
            result = function(batch)
        except Exception as error:
            error.add_note(f"raised by the function of --extra-terms {name}")
            raise
        if not isinstance(result, Tensor) or result.shape != ():
            given = f"a tensor of shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            raise UserError(f"--extra-terms {name}: its function returns {given}; it must return a scalar tensor")
        return result

    return value


def term_values(terms: dict[str, Term], batch: Batch) -> dict[str, Tensor]:
    """Every term unweighted, a scalar; a term of weight 0 is computed without a graph, only for the log."""
    values = {}
    for name, term in terms.items():
        with torch.set_grad_enabled(term.weight > 0):
            values[name] = term.value(batch).float()
    return values


def unweighted(weights: Mapping[str, float]) -> set[str]:
    """The logged losses that have no weight; without the entire term, the discriminator's is one of them."""
    without = {name for name, weight in weights.items() if weight == 0}
    return without | {"discriminator"} if "entire" in without else without


def total_loss(terms: dict[str, Term], values: dict[str, Tensor]) -> Tensor:
    """The weighted sum of the terms, a scalar."""
    return torch.stack([term.weight * values[name] for name, term in terms.items() if term.weight > 0]).sum()


def gradient_norms(
    terms: dict[str, Term],
    values: dict[str, Tensor],
    parameters: Sequence[Tensor],
    average: Callable[[list[Tensor]], list[Tensor]],
    scale: float,
) -> dict[str, float]:
    """Norm of each weighted term's gradient on the adapter; 0 for a term without weight.

    average: maps gradients to their means over the processes.
    scale: factor on the loss against underflow in fp16; it is reduced for a term whose gradient overflows.
    """
    norms = dict.fromkeys(terms, 0.0)
    for name, term in terms.items():
        factor = scale
        while term.weight > 0 and values[name].requires_grad and factor >= 1:
            loss = term.weight * factor * values[name]
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
            norms[name] = torch.nn.utils.get_total_norm(average(list(gradients))).item() / factor
            if math.isfinite(norms[name]):
                break
            factor /= 16
    return norms


def ensure_reached(terms: dict[str, Term], norms: dict[str, float]) -> None:
    """Refuse a run in which the gradient of a weighted term does not reach the adapter or is not finite."""
    for name, term in terms.items():
        if term.is_extra and term.weight > 0 and not math.isfinite(norms[name]):
            raise UserError(
                f"--extra-terms {name}={term.weight}: its gradient on the adapter is {norms[name]}, though the images "
                "are finite; its function must give finite values and gradients"
            )
        if term.weight > 0 and not math.isfinite(norms[name]):
            raise UserError(
                f"the {name} term's gradient on the adapter is {norms[name]}, though the images are finite: the term "
                "or its gradient overflows; choose --detach-input, fewer --differentiated-steps, other --semantics or "
                "another --precision"
            )
        if term.weight > 0 and norms[name] == 0 and not term.zero_at_start:
            setting = f"--extra-terms {name}=" if term.is_extra else f"--{name}-weight "
            remedy = (
                "let its function be differentiable" if term.is_extra else "choose models that pass its gradient on"
            )
            raise UserError(
                f"{setting}{term.weight}: the {name} term's gradient on the adapter is {norms[name]}, so it "
                f"would train nothing; set {setting}0, or {remedy}"
            )
