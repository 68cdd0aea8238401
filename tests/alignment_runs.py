"""Alignment runs in tests: their state, and what they leave."""

import json

from lbgen.alignment import run
from lbgen.alignment.state import AlignmentState
from lbgen.vocabulary.vocabulary import load_vocabulary

ADAPTER = "adapter/pytorch_lora_weights.safetensors"
TERM = {"independence_weight": 1.0, "independence_bank": 16, "independence_memory": 3}
"""Settings of a small independence term."""


def state_of(config):
    return AlignmentState(config, load_vocabulary(config.vocabulary), run.start_accelerator(config))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
