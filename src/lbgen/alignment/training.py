"""Training an adapter: the part of `lbgen align` after all checks."""

import json
import shutil
from pathlib import Path

from accelerate import Accelerator

from lbgen.alignment import checkpoint
from lbgen.alignment.checkpoint import CONFIG, PROVENANCE, identity_of, saved_progress
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.loop import evaluate, measure_gradients, received_signal, train, write_line
from lbgen.alignment.monitor import Monitor
from lbgen.alignment.objective import ensure_reached
from lbgen.alignment.reports.trackers import start_logger
from lbgen.alignment.state import AlignmentState
from lbgen.configuration import saved
from lbgen.errors import Interrupted
from lbgen.runs import atomic
from lbgen.runs.console import counted, say
from lbgen.runs.signals import noted_signals
from lbgen.vocabulary.vocabulary import Vocabulary

FINISHING = "this update and its evaluation, and saving a checkpoint"
"""What a run finishes before it ends after a signal, for messages."""


def train_adapter(
    config: AlignConfig, vocabulary: Vocabulary, accelerator: Accelerator, resumed: Path | None
) -> tuple[Path, int]:
    """Train from a checkpoint, or from the start.  Returns the adapter's folder and the number of updates."""
    # Load the models; a new run checks that every weighted term reaches the adapter.
    state = AlignmentState(config, vocabulary, accelerator, resumed)
    norms = check_gradients(state) if resumed is None else {}
    prepare_folder(config, vocabulary, accelerator, state.progress.step if resumed is not None else None)
    start_logger(config, accelerator)
    monitor = make_monitor(state)

    # Train, then publish the adapter of the last checkpoint.
    with noted_signals(FINISHING if accelerator.is_main_process else "") as signals:
        if resumed is None:
            shown = {"entire": 0.0, "individual": 0.0, "quality": 0.0, **norms}
            write_line(state, "metrics.jsonl", {"step": 0, "gradient_norms": shown})
            evaluate(state, monitor)
        train(state, monitor, signals)
        return finish(state, signals)


# ---- start and end ----


def make_monitor(state: AlignmentState) -> Monitor | None:
    """The monitor on the main process, None on the others."""
    if not state.accelerator.is_main_process:
        return None
    models = (state.generator, state.semantics, state.quality)
    return Monitor(state.config, state.vocabulary, *models, state.accelerator.autocast)


def check_gradients(state: AlignmentState) -> dict[str, float]:
    """Measure and print each weighted term's gradient norm on the adapter; refuse a term that does not reach it."""
    norms = measure_gradients(state)
    shown = (f"{name} {norm:.3g}" for name, norm in norms.items() if state.terms[name].weight > 0)
    say_on_main(state.accelerator, "gradient norms: " + ", ".join(shown))
    ensure_reached(state.terms, norms)
    return norms


def finish(state: AlignmentState, signals: list[int]) -> tuple[Path, int]:
    """Write the last checkpoint and publish its adapter; then raise Interrupted if a signal came too late to stop."""
    output, accelerator = state.config.folder, state.accelerator
    adapter = output / "adapter"
    state.save()
    if accelerator.is_main_process:
        checkpoint.publish_adapter(state.checkpoint_path, adapter)
    signum = received_signal(accelerator, signals)
    accelerator.end_training()
    say_on_main(accelerator, f"{counted(state.progress.step, 'update')}; the adapter is in {adapter}")
    if signum:
        raise Interrupted(signum, f"{output} is finished; the adapter is in {adapter}")
    return adapter, state.progress.step


def finished_adapter(
    config: AlignConfig, vocabulary: Vocabulary, accelerator: Accelerator, resumed: Path
) -> tuple[Path, int]:
    """The adapter of a run that has made all its steps. Publishes it if the run was killed before that."""
    adapter, step = config.folder / "adapter", saved_progress(resumed).step
    if not checkpoint.is_published(resumed, adapter):
        prepare_folder(config, vocabulary, accelerator, step)
        if accelerator.is_main_process:
            checkpoint.publish_adapter(resumed, adapter)
    say_on_main(accelerator, f"{config.folder} is finished: {counted(step, 'step')}; the adapter is in {adapter}")
    return adapter, step


def say_on_main(accelerator: Accelerator, text: str) -> None:
    """Print a line on the main process only."""
    if accelerator.is_main_process:
        say(text)


# ---- the run folder ----


def prepare_folder(config: AlignConfig, vocabulary: Vocabulary, accelerator: Accelerator, step: int | None) -> None:
    """Write the config; remove lines after `step` and incomplete checkpoints.  step: None for a new run."""
    if accelerator.is_main_process:
        with atomic.making(config.folder):
            saved.save(config, config.folder / CONFIG)
        if step is None:
            shutil.rmtree(config.folder / "samples", ignore_errors=True)
            write_provenance(config, vocabulary)
        checkpoint.clean(config.folder)
        for name in ("metrics.jsonl", "evaluations.jsonl"):
            checkpoint.drop_lines_after(config.folder / name, -1 if step is None else step)
    accelerator.wait_for_everyone()


def write_provenance(config: AlignConfig, vocabulary: Vocabulary) -> None:
    """Record the identity of a run at its start; resuming does not change it."""
    content = json.dumps(identity_of(config, vocabulary).to_plain(), indent=2) + "\n"
    atomic.write_text(config.folder / PROVENANCE, content)
