"""Checks that need the loaded generator, made before anything is written."""

from __future__ import annotations

from typing import NamedTuple

from lbgen.generation.config import GenerateConfig
from lbgen.generation.inputs import identity_of
from lbgen.generation.plan import Plan, joined_names
from lbgen.generation.record import Record
from lbgen.generation.screening.balance import longest_template
from lbgen.generation.workers.batch_size import batch_that_fits
from lbgen.generation.workers.loading import Models
from lbgen.models.generator import Generator
from lbgen.runs.identity import Identity
from lbgen.vocabulary.distinct import Confusion, refuse_confusions
from lbgen.vocabulary.tokens import refuse_long_text
from lbgen.vocabulary.vocabulary import Vocabulary

CPU_BATCH_SIZE = 32
"""Default batch size on a CPU."""


class PreflightResult(NamedTuple):
    batch_size: int
    made_with: Identity
    """Hashes of the inputs and versions of the libraries, on the machine that loaded the generator."""
    confusions: list[Confusion]
    """Categories that the generator, or the language space of the label check, cannot tell apart."""


def preflight(models: Models, config: GenerateConfig, plan: Plan, recorded: Identity | None = None) -> PreflightResult:
    """Refuse prompts that are too long for the generator; find a batch size if the configuration gives none.

    recorded: the identity of the dataset that this run continues.
    """
    generator, screen = models
    refuse_long_prompts(generator, config, plan)
    confusions = generator.confusions(plan.categories, config.prompt_template)
    confusions += screen.confusions(plan.categories) if screen else []
    batch_size = config.batch_size or default_batch_size(config, generator)
    return PreflightResult(batch_size, identity_of(config, recorded), confusions)


def refuse_new_confusions(found: list[Confusion], config: GenerateConfig, record: Record | None) -> None:
    """Refuse categories that a model cannot tell apart, unless the dataset already holds them."""
    known = {category.id for target in record.targets for category in target.categories} if record else ()
    refuse_confusions(found, keep=not config.qualify_names, known=known)


def default_batch_size(config: GenerateConfig, generator: Generator) -> int:
    if generator.device.type == "cpu":
        return CPU_BATCH_SIZE
    return batch_that_fits(generator, generator.latent_shape(*(config.size or generator.default_size)))


def refuse_long_prompts(generator: Generator, config: GenerateConfig, plan: Plan) -> None:
    """UserError if any prompt of the plan has more tokens than the text encoder reads."""
    template = longest_template(config, plan.balanced, generator.count_tokens)
    for target in plan.targets:
        if plan.compose == 1:
            Vocabulary(target.categories).check_tokens(generator.count_tokens, generator.token_limit, template)
            continue
        longest = sorted(target.categories, key=lambda category: -generator.count_tokens(category.name))[: plan.compose]
        refuse_long_text(
            template.replace("{name}", joined_names([category.name for category in longest])),
            generator.count_tokens,
            generator.token_limit,
            source=longest[0].source,
            remedy="shorten the names or the template, or give a smaller --compose",
        )
