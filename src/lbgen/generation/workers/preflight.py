"""What only a process with the generator in it can say, before anything is written."""

from __future__ import annotations

from typing import NamedTuple

from lbgen.generation import record as records
from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import Plan
from lbgen.generation.record import MadeWith
from lbgen.generation.screening.balance import longest_template
from lbgen.generation.workers.batch_size import batch_that_fits
from lbgen.models.generator import Generator
from lbgen.vocabulary.vocabulary import Vocabulary

BATCH_SIZE = 32
"""On a CPU, where none is asked for."""


class Checked(NamedTuple):
    batch_size: int
    made_with: MadeWith


def check(generator: Generator, config: GenerateConfig, plan: Plan) -> Checked:
    """Refuse prompts that the generator cannot read; find a batch size where none is given."""
    refuse_long_prompts(generator, config, plan)
    return Checked(config.batch_size or found_batch_size(config, generator), records.made_with(config))


def found_batch_size(config: GenerateConfig, generator: Generator) -> int:
    if generator.device.type == "cpu":
        return BATCH_SIZE
    return batch_that_fits(generator, generator.latent_shape(*(config.size or generator.default_size)))


def refuse_long_prompts(generator: Generator, config: GenerateConfig, plan: Plan) -> None:
    template = longest_template(config, plan.balanced, generator.count_tokens)
    for target in plan.targets:
        vocabulary = Vocabulary(target.categories)
        vocabulary.check_tokens(generator.count_tokens, generator.token_limit, template)
