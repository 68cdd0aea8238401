"""Runs of `lbgen pretrain`, as tests compare them."""

import json

from lbgen.pretraining.config import PretrainConfig


def lines(config: PretrainConfig) -> list[dict]:
    """Of metrics.jsonl."""
    return [json.loads(line) for line in (config.folder / "metrics.jsonl").read_text().splitlines()]


def without_speed(config: PretrainConfig) -> list[dict]:
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines(config)]


def assert_equal_runs(ours: PretrainConfig, theirs: PretrainConfig) -> None:
    """Backbones to the bit, the checkpoints too, and every line of metrics but the speed."""
    for name in ("backbone.safetensors", "checkpoint.pt"):
        assert (ours.folder / name).read_bytes() == (theirs.folder / name).read_bytes(), name
    assert without_speed(ours) == without_speed(theirs)
