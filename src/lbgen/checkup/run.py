"""`lbgen doctor`: one page on what this machine has and lacks for a run. It does not use the network."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from huggingface_hub import constants
from packaging.requirements import Requirement

from lbgen.checkup.config import DoctorConfig
from lbgen.checkup.models import find_generator, find_quality, find_semantics
from lbgen.configuration.ranges import ensure_config
from lbgen.errors import UserError, printable
from lbgen.runs import atomic
from lbgen.runs.console import SIZES, counted, in_units, table
from lbgen.runs.version import __version__


def doctor(config: DoctorConfig | None = None) -> None:
    """Print what this machine has and lacks. Raises UserError that names what is missing, if anything.

    Models that are not downloaded yet are no fault, unless the hub is disabled or the download would not fit.

    >>> import lbgen
    >>> lbgen.doctor()
    """
    config = DoctorConfig() if config is None else config
    ensure_config(config, DoctorConfig)
    missing: list[str] = []
    rows = [
        ("lbgen", __version__),
        ("Python", python()),
        *libraries(missing),
        *device(missing),
        *disks(config, missing),
        *models(config, missing),
    ]
    print(table([(name, printable(text)) for name, text in rows]))
    if missing:
        raise UserError(f"{counted(len(missing), 'thing')} missing: {'; '.join(missing)}")
    print("nothing is missing, as far as lbgen can tell without a network")


def python() -> str:
    return f"{platform.python_version()}, {sys.executable}, {platform.platform(terse=True)}"


def libraries(missing: list[str]) -> Iterator[tuple[str, str]]:
    """The libraries of lbgen and of its extras, with their versions."""
    needed, optional = [], []
    for requirement in map(Requirement, requires("lbgen") or ()):
        extra = requirement.marker is not None and "extra" in str(requirement.marker)
        found = installed(requirement.name)
        fits = found is not None and requirement.specifier.contains(found, prereleases=True)
        text = f"{requirement.name} {found or 'not installed'}"
        if not extra:
            needed.append(text if fits else f"{text} ({requirement.specifier} is needed)")
            if not fits:
                missing.append(f"{requirement.name}{requirement.specifier}: pip install '{requirement}'")
        elif requirement.name in OPTIONAL and text not in optional:
            optional.append(text)
    yield "libraries", ", ".join(needed)
    yield "optional", ", ".join(optional)


OPTIONAL = ("ray", "wandb", "trackio", "s3fs", "gcsfs")
"""Libraries of extras that users of the command line may want."""


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def device(missing: list[str]) -> Iterator[tuple[str, str]]:
    """Processors and memory, and each GPU with its memory."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = (in_units(os.sysconf(name) * page, SIZES) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    yield "processors", f"{os.cpu_count()}; {total} of memory, {free} of it unused"
    try:
        import torch  # late: slow
    except Exception as error:  # a system library that is missing or of another version
        missing.append("a torch that can be imported")
        yield "device", f"torch cannot be imported: {' '.join(str(error).split())}"
        return
    if not torch.cuda.is_available():
        yield "device", f"no GPU that torch {torch.__version__} can use; runs use the CPU"
        return
    for number in range(torch.cuda.device_count()):
        unused, all_of_it = torch.cuda.mem_get_info(number)
        memory = f"{in_units(all_of_it, SIZES)} of memory, {in_units(unused, SIZES)} of it unused"
        yield f"GPU {number}", f"{torch.cuda.get_device_name(number)}, {memory}"


def disks(config: DoctorConfig, missing: list[str]) -> Iterator[tuple[str, str]]:
    """Free space where runs write, where models are kept, and for temporary files."""
    output = Path(config.output)
    try:
        atomic.ensure_writable(output)
    except UserError as error:
        missing.append(str(error))
    places = {"output": output, "models": Path(constants.HF_HUB_CACHE), "temporary": Path(tempfile.gettempdir())}
    for name, folder in places.items():
        yield f"disk, {name}", f"{in_units(free_bytes(folder), SIZES)} free at {folder.absolute()}"


def free_bytes(folder: Path) -> int:
    """Free space of the disk on which a folder is, or would be created."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def models(config: DoctorConfig, missing: list[str]) -> Iterator[tuple[str, str]]:
    """The location of each model, or the size of its download."""
    found = [find_generator(config.generator), find_semantics(config.semantics), *find_quality(config.quality)]
    for model in found:
        yield model.kind, f"{model.name}: {model.state}"
        if model.fault:
            missing.append(model.fault)
    to_load = [model for model in found if model.download is not None]
    known = sum(model.download or 0 for model in to_load)
    if to_load and constants.HF_HUB_OFFLINE:
        missing += [f"{model.name}: HF_HUB_OFFLINE is set; unset it, or give a folder" for model in to_load]
    elif known > free_bytes(Path(constants.HF_HUB_CACHE)):
        missing.append(f"room for {in_units(known, SIZES)} of models; set HF_HOME to a folder on a larger disk")
