"""The processes of a training, as set in the environment by `accelerate launch`, torchrun or MPI."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbgen.errors import UserError
from lbgen.runs.lock import locked
from lbgen.runs.store import LOCK

if TYPE_CHECKING:
    from accelerate import Accelerator

ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "model parallelism",
}
"""Variable that requests an accelerate engine that divides models -> name of the engine."""
PROCESSES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def refuse_engines(verb: str) -> None:
    for variable, engine in ENGINES.items():
        if os.environ.get(variable, "").lower() == "true":
            raise UserError(
                f"{variable} selects {engine}, but every process of lbgen {verb} holds whole models; unset it, or "
                "do not choose it in `accelerate config`"
            )


def is_launched() -> bool:
    """Whether a launcher started this process, so that only accelerate knows the number of processes."""
    return any(name in os.environ for name in PROCESSES)


def is_first() -> bool:
    """Whether this is the run's only process, or its first."""
    return next((os.environ[name] for name in RANKS if name in os.environ), "0").strip() == "0"


def lock(folder: Path) -> AbstractContextManager[None]:
    """The run folder's lock, for one run at a time; only the first process of a run holds it."""
    return locked(folder / LOCK, str(folder)) if is_first() else nullcontext()


def start_accelerator(precision: str, logger: str, folder: Path, handlers: list[Any]) -> Accelerator:
    """Device, precision and processes, as set up by `accelerate launch` or torchrun.

    handlers: accelerate's handlers for settings that differ from its defaults.
    """
    import torch  # late, like the others: slow, and not needed by runs that are refused
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    cpu = not torch.accelerator.is_available()  # on CPUs accelerate joins torchrun's processes only with this argument
    try:
        if precision == "fp16" and PartialState(cpu).device.type == "cpu":
            raise UserError("--precision fp16 needs a GPU; choose fp32 or bf16")
        AcceleratorState._reset_state()  # an earlier run in this Python may have had another precision
        return Accelerator(
            cpu=cpu,
            mixed_precision="no" if precision == "fp32" else precision,
            log_with=None if logger == "none" else logger,
            project_dir=folder / "logs",
            kwargs_handlers=handlers,
        )
    except UserError:
        raise
    except (ImportError, ValueError, LookupError, RuntimeError) as error:  # for invalid settings in the environment
        reason = " ".join(str(error).split())
        remedy = "correct or unset the variables ACCELERATE_*, RANK, WORLD_SIZE and MASTER_* that a launcher sets"
        raise UserError(f"accelerate does not start: {reason}; {remedy}") from error


def received_signal(accelerator: Accelerator, signals: list[int]) -> int:
    """The signal that a process has received, the same in all processes; 0 if none has."""
    if accelerator.num_processes == 1:
        return signals[0] if signals else 0
    import torch  # late: slow, and not needed by runs that are refused

    received = torch.tensor([signals[0] if signals else 0], device=accelerator.device)
    return int(accelerator.gather(received).max())
