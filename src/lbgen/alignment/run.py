"""The course of a run: evaluate, warm up, update, save; and what it writes on the way."""

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from lbgen.alignment import checkpoint
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.monitor import Monitor, check_diversity, diversity_share
from lbgen.alignment.trainer import Trainer
from lbgen.errors import Interrupted, UserError


class Run:
    """A run's progress, `record`, and what it writes; only the main process writes.

    The `draw`-th batch is the warm-up's until the discriminator has had its share, then the updates'.
    """

    def __init__(self, config: AlignConfig, trainer: Trainer, accelerator: Accelerator, record: dict[str, Any]) -> None:
        self.config, self.trainer, self.accelerator, self.record = config, trainer, accelerator, record
        self.monitor: Monitor | None = None
        if config.logger != "none":
            settings = {name: str(value) for name, value in asdict(config).items()}
            try:
                accelerator.init_trackers("align", settings)
            except Exception as error:  # each logger has its own: no account, no connection, no room
                reason = f"{error}; mend that, or choose another --logger"
                raise UserError(f"--logger {config.logger} did not start: {reason}") from error
        if accelerator.is_main_process:
            self.monitor = Monitor(
                config, trainer.vocabulary, trainer.generator, trainer.semantics, trainer.quality, accelerator.autocast
            )

    @property
    def draw(self) -> int:
        return self.record["warmup"] + self.record["step"]

    def begin(self, gradient_norms: dict[str, float]) -> None:
        """The first line of metrics, and the base model's evaluation."""
        shown = {"entire": 0.0, "individual": 0.0, "quality": 0.0, **gradient_norms}
        self.write("metrics.jsonl", {"step": 0, "gradient_norms": shown})
        self.evaluate()

    def warm_up(self, signals: list[int]) -> None:
        """Updates of the discriminator alone."""
        with self.progress("warm-up", self.config.discriminator_warmup_steps, self.record["warmup"]) as progress:
            while self.record["warmup"] < self.config.discriminator_warmup_steps:
                batch = self.trainer.batch(self.draw, differentiate=False)
                losses = self.trainer.update_opponents(batch, self.draw)
                self.record["warmup"] += 1
                progress.set_postfix({name: f"{loss:.3f}" for name, loss in losses.items()})
                progress.update()
                self.leave_if_asked(signals)

    def loop(self, signals: list[int]) -> None:
        """The updates, each of both players on one batch, discriminator first."""
        config = self.config
        with self.progress("align", config.max_steps, self.record["step"]) as progress:
            while self.record["step"] < config.max_steps:
                metrics = self.update()
                self.write("metrics.jsonl", metrics)
                progress.set_postfix({name: f"{value:.3f}" for name, value in metrics.items() if type(value) is float})
                progress.update()
                step, last = self.record["step"], self.record["step"] == config.max_steps
                if last or (config.evaluate_every and step % config.evaluate_every == 0):
                    self.evaluate()
                if last:
                    break
                if step % config.checkpoint_every == 0:
                    self.save()
                self.leave_if_asked(signals)

    def update(self) -> dict[str, Any]:
        """One update; returns its line of metrics."""
        began = time.perf_counter()
        batch = self.trainer.batch(self.draw, differentiate=True)
        opponents = self.trainer.update_opponents(batch, self.draw)
        losses = self.trainer.update_adapter(batch, self.record["step"] + 1)
        self.record["step"] += 1
        speed = self.trainer.global_batch / (time.perf_counter() - began)
        terms = {name: losses.get(name) for name in ("loss", "entire", "individual", "quality")} | losses
        return {"step": self.record["step"], **terms, **opponents, "images_per_second": speed}

    def evaluate(self) -> None:
        """Sample and measure the evaluation images on the main process; the guard's verdict reaches every process.

        Where it stops the run, the state is saved first.
        """
        step = self.record["step"]
        share = 1.0
        if self.monitor is not None:
            with self.trainer.averaged():
                statistics = self.monitor.evaluate(step)
            self.write("evaluations.jsonl", {"step": step, **statistics})
            share = diversity_share(statistics["diversity"], self.monitor.base_diversity)
        if self.config.guard != "off":
            share = self._from_main(share)
            warning = check_diversity(self.config, step, share)
            if warning and self.config.guard == "stop":
                self.save()
                self.accelerator.end_training()
                raise UserError(warning)
            if warning:
                self._say(f"lbgen: {warning}")

    def leave_if_asked(self, signals: list[int]) -> None:
        """Save and stop, all processes alike, once one of them has received a signal."""
        if signum := self._received(signals):
            self.save()
            self.accelerator.end_training()
            where = checkpoint.checkpoint_path(self.config.folder, self.record["step"])
            raise Interrupted(signum, f"saved {where}; the same command goes on from there")

    def finish(self, adapter: Path, signals: list[int]) -> None:
        """Write the last checkpoint and its adapter; a signal that came too late to stop the run ends the program."""
        self.save()
        if self.accelerator.is_main_process:
            checkpoint.publish_adapter(checkpoint.checkpoint_path(self.config.folder, self.record["step"]), adapter)
        signum = self._received(signals)
        self.accelerator.end_training()
        if signum:
            raise Interrupted(signum, f"{self.config.folder} is finished; the adapter is in {adapter}")

    def save(self) -> None:
        """Write a checkpoint and drop the old ones."""
        if self.accelerator.is_main_process:
            with checkpoint.new_folder(checkpoint.checkpoint_path(self.config.folder, self.record["step"])) as folder:
                self.trainer.save(folder)
                checkpoint.mark_complete(folder, self.record)
            checkpoint.clean(self.config.folder)
        self.accelerator.wait_for_everyone()

    def _received(self, signals: list[int]) -> int:
        """The signal that one of the processes has received, the same in all; 0 for none."""
        received = torch.tensor([signals[0] if signals else 0], device=self.accelerator.device)
        return int(self.accelerator.gather(received).max())

    # ---- what is shown and written ----

    def write(self, name: str, line: dict[str, Any]) -> None:
        """Append the line to a file of the run and hand its numbers to the logger; a number that is none is null."""
        if not self.accelerator.is_main_process:
            return
        line = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in line.items()
        }
        checkpoint.append_line(self.config.folder / name, line)
        numbers = {f"{Path(name).stem}/{key}": value for key, value in line.items() if isinstance(value, float)}
        self.accelerator.log(numbers, step=line["step"])

    def progress(self, name: str, total: int, done: int) -> tqdm:
        return tqdm(total=total, initial=done, desc=name, disable=not self.accelerator.is_main_process or done >= total)

    def _say(self, message: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(message)

    def _from_main(self, value: float) -> float:
        """The main process's value, in every process."""
        return float(self.accelerator.gather(torch.tensor([value], device=self.accelerator.device))[0])
