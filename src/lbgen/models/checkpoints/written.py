"""Checkpoints that lbgen writes as diffusers folders."""

import json
from pathlib import Path
from typing import Any

from lbgen.models.loading import no_progress_bars
from lbgen.runs import atomic

ORIGIN = "_name_or_path"
"""In the configurations that diffusers writes: where a part was read from, a place on this machine."""


def write_pipeline(pipeline: Any, folder: Path) -> None:
    """Write a pipeline of diffusers as a folder; nothing in it says where on this machine its parts came from."""
    with no_progress_bars():
        pipeline.save_pretrained(folder)
    for path in (*folder.glob("*.json"), *folder.glob("*/*config.json")):
        content = json.loads(path.read_text(encoding="utf-8"))  # Python's reader also takes numbers that are not finite
        if content.pop(ORIGIN, None) is not None:
            atomic.write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
