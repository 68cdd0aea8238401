"""Checkpoints that lbgen writes as diffusers folders."""

import json
from pathlib import Path
from typing import Any

from lbgen.models.loading import no_progress_bars
from lbgen.runs import atomic

ORIGIN = "_name_or_path"
"""Key in the configurations that diffusers writes: the local path from which a part was read."""


def write_pipeline(pipeline: Any, folder: Path) -> None:
    """Write a diffusers pipeline as a folder, without the local paths from which its parts were read."""
    with no_progress_bars():
        pipeline.save_pretrained(folder)
    for path in (*folder.glob("*.json"), *folder.glob("*/*config.json")):
        content = json.loads(path.read_text(encoding="utf-8"))  # Python's reader also accepts non-finite numbers
        if content.pop(ORIGIN, None) is not None:
            atomic.write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
