"""`lbgen export merged`: a whole checkpoint with the adapter added to its weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lbgen.configuration.ranges import ensure_config
from lbgen.configuration.saved import CONFIG
from lbgen.errors import UserError
from lbgen.exports.config import ExportMergedConfig
from lbgen.exports.sources import (
    adapter_folder,
    made_by,
    recorded_hashes,
    refuse_inside,
    settings,
    writing,
)
from lbgen.models.checkpoints import forms
from lbgen.models.registry import GENERATORS, ensure_generator, generator_class, resolve
from lbgen.runs import atomic
from lbgen.runs.console import say
from lbgen.runs.model_folder import SAFETY_CHECKER

MADE_BY = "lbgen.json"
"""The file in the checkpoint that describes its origin."""


def export_merged(config: ExportMergedConfig) -> Path:
    """Write the generator of `config.run` with its adapter merged as a diffusers folder, and return the folder.

    Weights are in float32, W + alpha / rank * B A. Raises UserError for a run without an adapter, a generator that is
    missing or differs from that of the training, and an output that holds other files.

    >>> import lbgen
    >>> lbgen.export_merged(lbgen.ExportMergedConfig("runs/animals", "models/animals"))
    """
    ensure_config(config, ExportMergedConfig)
    run, output = Path(config.run), Path(config.output)
    folder = adapter_folder(run)
    refuse_inside(run, output)
    if os.path.lexists(output) and not (os.path.isdir(output) and not os.listdir(output)):
        raise UserError(f"{output}: it holds other files; choose a new folder")
    base = base_generator(run, config.generator)
    ensure_generator(*base)
    from lbgen.models.checkpoints.written import write_pipeline  # late, like all imports of torch
    from lbgen.models.generator import load_generator

    say(f"merging {folder} into {base.name}")
    generator = load_generator(base.name, revision=base.revision, variant=base.variant)
    ensure_trained_on(run, base)
    generator.merge_adapter(folder)
    pipeline = getattr(generator.family, "pipeline", None)
    if pipeline is None:
        raise UserError(
            f"generator {base.name}: {generator.family.title} is not a pipeline of diffusers, so it cannot be saved"
        )
    with writing(output.parent), written_whole(output) as temporary:
        write_pipeline(pipeline, temporary)
        origin = json.dumps(made_by(run, folder), indent=1, ensure_ascii=False)
        atomic.write_text(temporary / MADE_BY, origin + "\n")
    say(f"the checkpoint with the adapter merged is in {output}")
    return output


@contextmanager
def written_whole(output: Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to `output` at the end; `output` may be an empty folder."""
    temporary = atomic.temporary_name(output)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        yield temporary
        os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# ---- the generator that the adapter belongs to ----


class Base(NamedTuple):
    """The generator that an adapter belongs to."""

    name: str
    revision: str | None
    variant: str | None


def base_generator(run: Path, asked: str | None) -> Base:
    """The generator that the user named, or else the one named by the run folder.

    The run folder is untrusted, so nothing is downloaded because of it.
    """
    recorded = settings(run)
    named, revision, variant = (_text(recorded.get(field)) for field in ("generator", "revision", "variant"))
    if asked is not None:
        return Base(asked, revision, variant) if asked == named else Base(asked, None, None)
    if named is None:
        raise UserError(f"{run}: no {CONFIG} in it that names a generator; give --generator")
    place = resolve(named, GENERATORS)
    if named not in GENERATORS and not os.path.exists(place) and generator_class(named, revision) is None:
        raise UserError(f"{run} names generator {named}, which is not on this machine; give --generator {named}")
    return Base(named, revision, variant)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def ensure_trained_on(run: Path, base: Base) -> None:
    """Refuse a generator with other weights than the run recorded."""
    then, place = recorded_hashes(run), resolve(base.name, GENERATORS)
    now = forms.hashes(place, base.revision, base.variant, then.get("generator"), SAFETY_CHECKER)
    for name in ("generator", "generator_config"):
        if then.get(name) is not None and now.get(name) != then[name]:
            raise UserError(
                f"{run} was trained on other weights than generator {base.name} has now ({name}_sha256 {then[name]}); "
                "give --generator the checkpoint that it was trained on"
            )
