"""The source of an export: a run folder or an adapter folder, which is untrusted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta
from safetensors import SafetensorError

from lbgen.configuration.saved import CONFIG
from lbgen.configuration.yaml_lines import read_yaml
from lbgen.errors import UserError
from lbgen.models.registry import ADAPTER_FILE, adapter_file
from lbgen.runs import atomic, outputs
from lbgen.runs.identity import PROVENANCE, Identity
from lbgen.runs.parsing import Name, checked, read_json
from lbgen.runs.version import __version__

ADAPTER = "adapter"
"""The adapter's folder in that of a run."""
TOLD = ("max_steps", "seed", "scheduler", "steps", "guidance_scale", "prompt_template", "text_template")
"""Settings of a run that its exports name."""
Alpha: Any = Annotated[float, Meta(gt=0, le=1e6)]
Rank: Any = Annotated[int, Meta(ge=1, le=4096)]


def adapter_folder(run: Path) -> Path:
    """The folder of the adapter's file; UserError if there is none."""
    for folder in (run / ADAPTER, run):
        if (folder / ADAPTER_FILE).is_file():
            return folder
    if (run / CONFIG).is_file():
        raise UserError(f"{run}: no {ADAPTER}/{ADAPTER_FILE} in it; give the folder of a finished lbgen align")
    return adapter_file(run, str(run)).parent


def settings(run: Path) -> dict[str, Any]:
    """The run's configuration by field; empty for an adapter folder without a run."""
    path = run / CONFIG
    return read_yaml(path) if path.is_file() else {}


def recorded_hashes(run: Path) -> Mapping[str, str | None]:
    """The hashes that the run recorded at its start; empty if it recorded none."""
    path = run / PROVENANCE
    if not path.is_file():
        return {}
    return Identity.from_plain(read_json(atomic.read_bytes(path), dict[Name, Any], str(path)), (), str(path)).hashes


def trained_alpha(run: Path) -> float | None:
    """The alpha of the factor alpha / rank on the update, from the run's configuration; None without one."""
    config, source = settings(run), run / CONFIG
    if config.get("alpha") is None:
        return None
    alpha: float = checked(config["alpha"], Alpha, f"{source}, alpha", "restore the file")
    if config.get("use_rslora") is not True:
        return alpha
    rank: int = checked(config.get("rank"), Rank, f"{source}, rank", "restore the file")
    return float(alpha * rank**0.5)


def made_by(run: Path, adapter: Path) -> dict[str, Any]:
    """A description of the origin of an export, without local paths."""
    config, hashes = settings(run), recorded_hashes(run)
    generator = config.get("generator")
    return {
        "lbgen": __version__,
        "adapter_sha256": atomic.sha256(adapter / ADAPTER_FILE),
        **({"generator": portable_name(generator)} if isinstance(generator, str) else {}),
        **({"generator_sha256": hashes["generator"]} if hashes.get("generator") else {}),
        **{name: config[name] for name in TOLD if isinstance(config.get(name), str | int | float)},
    }


def portable_name(place: str) -> str:
    """A registry name or a hub id unchanged; for a folder or a file only its own name."""
    is_path = os.path.exists(place) or place.startswith(("/", ".", "~")) or place.count("/") > 1
    return os.path.basename(place.rstrip("/")) if is_path else place


def refuse_inside(run: Path, output: Path) -> None:
    """Refuse an output inside the run folder, which belongs to lbgen align, or inside a dataset."""
    outputs.ensure_outside(output)
    if output.absolute().resolve().is_relative_to(run.absolute().resolve()):
        raise UserError(f"{output}: it lies in the run folder {run}; choose another place")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Create the folder and write into it within this context; operating-system errors become one line."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{folder}: {reason}; choose a folder that can be written") from None
