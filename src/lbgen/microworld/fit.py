"""A training loop that can be killed at any time and resumes from its last checkpoint."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lbgen.runs import atomic

EVERY = 100
"""Steps between checkpoints and lines of the curve."""


def fit(
    name: str, module: nn.Module, loss_of_step: Callable[[int], Tensor], steps: int, learning_rate: float, folder: Path,
    average: float = 0.0, matrices: Sequence[nn.Parameter] = (), cosine_steps: Callable[[int], int] | None = None,
) -> nn.Module:  # fmt: skip
    """Minimise `loss_of_step(step)` over the module's parameters with AdamW, a short warm-up and a cosine to zero.

    The data of a step must depend only on its number.  average: decay of the moving average of the weights; the module
    is returned with the averaged weights or, for 0, with the last ones.  matrices: parameters updated by Muon
    (arXiv 2502.16982) with steps twice as large as AdamW's.  cosine_steps: step -> length of the cosine schedule, by
    default `steps`. Writes `folder/name.pt` and the curve `folder/name.jsonl`.
    """
    optimisers = _optimisers(module, matrices, learning_rate)
    schedules = _schedules(optimisers, cosine_steps or (lambda step: steps))
    averaged = {key: value.detach().clone() for key, value in module.state_dict().items()}
    checkpoint, curve, first = folder / f"{name}.pt", folder / f"{name}.jsonl", 0
    if checkpoint.exists():
        averaged, first = _load(checkpoint, module, optimisers, schedules)
    module.train()
    total, started = 0.0, time.perf_counter()
    for step in range(first, steps):
        # Update the weights.
        loss = loss_of_step(step)
        module.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for optimiser, schedule in zip(optimisers, schedules, strict=True):
            optimiser.step()
            schedule.step()

        # Average them; the decay starts low.
        _average(averaged, module, min(average, (step + 1) / (step + 10)))

        # Save, and write a line of the curve.
        total += float(loss.detach())
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            done = (step % EVERY) + 1
            _report(name, curve, step + 1, total / done, (time.perf_counter() - started) / done)
            total, started = 0.0, time.perf_counter()
            _save(checkpoint, module, optimisers, schedules, averaged, step + 1)
    if average:
        module.load_state_dict(averaged)
    return module.eval()


def _average(averaged: dict[str, Tensor], module: nn.Module, decay: float) -> None:
    """Move the average towards the module's weights; tensors that are not floating-point are copied."""
    for key, value in module.state_dict().items():
        averaged[key] = torch.lerp(value, averaged[key], decay) if value.is_floating_point() else value.clone()


def _report(name: str, curve: Path, step: int, loss: float, seconds: float) -> None:
    line = {"step": step, "loss": round(loss, 5), "seconds_a_step": round(seconds, 3)}
    with curve.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(name, line, flush=True)


def _optimisers(
    module: nn.Module, matrices: Sequence[nn.Parameter], learning_rate: float
) -> list[torch.optim.Optimizer]:
    chosen = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in module.parameters() if id(parameter) not in chosen]
    adam = torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-2)
    if not matrices:
        return [adam]
    return [adam, torch.optim.Muon(matrices, lr=2 * learning_rate, weight_decay=1e-2, adjust_lr_fn="match_rms_adamw")]


Schedule = torch.optim.lr_scheduler.LRScheduler


def _schedules(optimisers: Sequence[torch.optim.Optimizer], cosine_steps: Callable[[int], int]) -> list[Schedule]:
    """Learning-rate schedules: a warm-up of 50 steps, and a cosine to zero."""

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / cosine_steps(step))))

    return [torch.optim.lr_scheduler.LambdaLR(optimiser, rate) for optimiser in optimisers]


def _load(
    checkpoint: Path, module: nn.Module, optimisers: list[torch.optim.Optimizer], schedules: Sequence[Schedule]
) -> tuple[dict[str, Tensor], int]:
    """Load a checkpoint of `_save`; returns the averaged weights and the number of finished steps."""
    state = torch.load(checkpoint, weights_only=True, map_location=next(module.parameters()).device)
    module.load_state_dict(state["module"])
    for optimiser, schedule, kept, place in zip(
        optimisers, schedules, state["optimisers"], state["schedules"], strict=True
    ):
        optimiser.load_state_dict(kept)
        schedule.load_state_dict(place)
    return state["averaged"], state["step"]


def _save(
    checkpoint: Path, module: nn.Module, optimisers: list[torch.optim.Optimizer], schedules: Sequence[Schedule],
    averaged: dict[str, Tensor], step: int,
) -> None:  # fmt: skip
    state = {
        "module": module.state_dict(), "averaged": averaged, "step": step,
        "optimisers": [optimiser.state_dict() for optimiser in optimisers],
        "schedules": [schedule.state_dict() for schedule in schedules],
    }  # fmt: skip
    with atomic.replacing(checkpoint) as temporary:
        torch.save(state, temporary)
