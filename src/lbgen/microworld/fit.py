"""A training loop that can be killed at any moment and resumes from its last checkpoint."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from lbgen.runs import atomic

EVERY = 100
"""Steps between checkpoints and lines of the curve."""


def fit(
    name: str, module: nn.Module, loss_of_step: Callable[[int], Tensor], steps: int, learning_rate: float, folder: Path,
    average: float = 0.0,
) -> nn.Module:  # fmt: skip
    """Minimise `loss_of_step(step)` over the module's parameters with AdamW, a short warm-up and a cosine to zero.

    The data of a step must depend on its number alone.  average: decay of the moving average of the weights. The module
    is returned with the averaged weights; for 0, with the last ones. Writes `folder/name.pt` and the
    curve `folder/name.jsonl`.
    """
    optimiser = torch.optim.AdamW(module.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * min(1, step / steps)))
    )
    averaged = {key: value.detach().clone() for key, value in module.state_dict().items()}
    checkpoint, curve, first = folder / f"{name}.pt", folder / f"{name}.jsonl", 0
    if checkpoint.exists():
        averaged, first = _load(checkpoint, module, optimiser, schedule)
    module.train()
    total, started = 0.0, time.perf_counter()
    for step in range(first, steps):
        # Update the weights.
        loss = loss_of_step(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        schedule.step()

        # Average them; the decay starts low.
        decay = min(average, (step + 1) / (step + 10))
        for key, value in module.state_dict().items():
            averaged[key] = torch.lerp(value, averaged[key], decay) if value.is_floating_point() else value.clone()

        # Save, and write a line of the curve.
        total += float(loss.detach())
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            done = (step % EVERY) + 1
            _report(name, curve, step + 1, total / done, (time.perf_counter() - started) / done)
            total, started = 0.0, time.perf_counter()
            _save(checkpoint, module, optimiser, schedule, averaged, step + 1)
    if average:
        module.load_state_dict(averaged)
    return module.eval()


def _report(name: str, curve: Path, step: int, loss: float, seconds: float) -> None:
    line = {"step": step, "loss": round(loss, 5), "seconds_a_step": round(seconds, 3)}
    with curve.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(name, line, flush=True)


def _load(
    checkpoint: Path, module: nn.Module, optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> tuple[dict[str, Tensor], int]:  # fmt: skip
    """Load what `_save` wrote; returns the averaged weights and the number of finished steps."""
    state = torch.load(checkpoint, weights_only=True, map_location=next(module.parameters()).device)
    module.load_state_dict(state["module"])
    optimiser.load_state_dict(state["optimiser"])
    schedule.load_state_dict(state["schedule"])
    return state["averaged"], state["step"]


def _save(
    checkpoint: Path, module: nn.Module, optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler, averaged: dict[str, Tensor], step: int,
) -> None:  # fmt: skip
    state = {
        "module": module.state_dict(), "optimiser": optimiser.state_dict(), "schedule": schedule.state_dict(),
        "averaged": averaged, "step": step,
    }  # fmt: skip
    with atomic.replacing(checkpoint) as temporary:
        torch.save(state, temporary)
