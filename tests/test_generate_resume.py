"""Datasets whose making was killed or interrupted end as one that was left alone."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from test_generate import config, contents, whole  # noqa: F401 (fixtures)

from lbgen.errors import Interrupted
from lbgen.generation.config import GenerateConfig
from lbgen.generation.render import Painter
from lbgen.generation.run import generate


def killed_at_rename(config: GenerateConfig, number: int) -> None:
    """Runs in a process of its own, which dies in the middle of putting its file `number` in place."""
    replace_file, done = os.replace, []

    def dying(source, target):
        if len(done) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(target)
        replace_file(source, target)

    os.replace = dying
    generate(config)


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lbgen.generation.run", "lbgen.models.stable_diffusion"])
    return context


def run_and_kill(processes, config: GenerateConfig, number: int) -> int:
    process = processes.Process(target=killed_at_rename, args=(config, number))
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("number", [0, 1, 2, 4, 7, 16])
def test_killed_run_ends_equal_to_the_whole_one(processes, config, whole, tmp_path, number):
    """Killed at the config, the provenance, an image, a shard's mark (7) and the last mark (16); then continued."""
    broken = replace(config, output=tmp_path / "broken")
    assert run_and_kill(processes, broken, number) == -signal.SIGKILL
    assert any(name.endswith(".tmp") for name in contents(broken.output))
    generate(broken)
    assert contents(broken.output) == contents(whole)


def test_continued_shard_draws_only_the_batches_that_are_not_whole(processes, config, tmp_path, monkeypatch):
    """Killed with two batches of the one shard in place and half of the third; the end is that of an untouched run."""
    broken = replace(config, output=tmp_path / "broken", images_per_shard=1000)
    assert run_and_kill(processes, broken, 7) == -signal.SIGKILL  # 2 records and 5 images are in place
    paint, painted = Painter.paint, []
    monkeypatch.setattr(Painter, "paint", lambda self, batch: painted.extend(batch) or paint(self, batch))
    generate(broken)
    assert len(painted) == 12 - 4
    generate(replace(broken, output=tmp_path / "untouched"))
    assert contents(broken.output) == contents(tmp_path / "untouched")


def test_run_killed_again_and_again_gets_through(processes, config, whole, tmp_path):
    """Of 17 files (2 records, 12 images, 3 marks) every attempt leaves a whole shard and dies in the next."""
    broken = replace(config, output=tmp_path / "broken")
    exits = [run_and_kill(processes, broken, number) for number in (8, 6, 3)]
    assert exits == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert contents(broken.output) == contents(whole)


def test_finished_run_writes_nothing(config, whole):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert generate(config).images == 12
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_interrupted_run_goes_on(config, whole, tmp_path, monkeypatch):
    """Ctrl-C during the fourth batch."""
    paint, painted = Painter.paint, []

    def interrupting(self, batch):
        painted.append(batch)
        if len(painted) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return paint(self, batch)

    monkeypatch.setattr(Painter, "paint", interrupting)
    broken = replace(config, output=tmp_path / "broken")
    with pytest.raises(Interrupted) as caught:
        generate(broken)
    assert caught.value.signum == signal.SIGINT
    assert len(painted) == 4
    assert not [path for path in broken.output.rglob("*.tmp")]
    generate(broken)
    assert len(painted) == 7  # the other three
    assert contents(broken.output) == contents(whole)


def test_terminated_command_exits_with_143(config, tmp_path):
    flags = ["--generator", config.generator, "--vocabulary", config.vocabulary, "--images-per-category", "400"]
    flags += ["--scheduler", "ddim", "--steps", "2", "--batch-size", "2", "--images-per-shard", "5"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lbgen", "generate", *flags, "--output", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "out/index/part-00000.parquet").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, shown = process.communicate()
    assert process.returncode == 143
    assert shown.splitlines()[-1].startswith(f"lbgen: {tmp_path / 'out'} keeps its finished images")
