"""Datasets whose making was killed or interrupted end as one that was left alone."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import failing_writers
import pytest
from folders import contents

from lbgen.datasets import index
from lbgen.errors import Interrupted, UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.render import Renderer
from lbgen.generation.run import generate
from lbgen.generation.workers import writer
from lbgen.runs.storage import LocalStore

KILLS = 100
SCREENED_KILLS = 5
"""Of each kind of screening."""
SEED = 20261125
LAYOUTS = ("imagefolder", "webdataset", "parquet")


@pytest.fixture
def processes(warm_processes):
    """Processes that have everything imported already, so that a kill seldom falls into imports."""
    return multiprocessing.get_context("forkserver")


def quiet_generate(config: GenerateConfig) -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)
    generate(config)


def shards_of(config: GenerateConfig) -> int:
    return len(LocalStore(Path(config.output), "reader").names("index"))


def run_and_kill(processes, config: GenerateConfig, seconds: float, at_next_shard: bool = False) -> bool:
    """Start a run and kill it that much later, or when its next shard counts, by SIGKILL; whether it was running."""
    process = processes.Process(target=quiet_generate, args=(config,))
    process.start()
    if at_next_shard:
        known = shards_of(config)
        while process.is_alive() and shards_of(config) == known:
            process.join(0.001)
    else:
        process.join(seconds)
    running = process.is_alive()
    process.kill()
    process.join()
    assert running or process.exitcode == 0
    return running


def identity(folder: Path) -> list[tuple[str, str, str]]:
    return sorted((row["id"], row["key"], row["sha256"]) for row in index.read_index(folder).to_pylist())


def test_run_killed_at_random_moments_ends_equal_to_the_whole_one(processes, config, tmp_path, record_property):
    """SIGKILL, 100 times over the three layouts, at moments drawn over the whole of a run, or as a shard was made."""
    rng, kills, datasets, moments = random.Random(SEED), 0, Counter(), Counter()
    wholes = {}
    run_and_kill(processes, replace(config, output=tmp_path / "first"), 600)  # brings up the server of processes
    for layout in LAYOUTS:
        began = time.monotonic()
        made = replace(config, output=tmp_path / layout, format=layout)
        process = processes.Process(target=quiet_generate, args=(made,))
        process.start()
        process.join()
        wholes[layout] = contents(tmp_path / layout), identity(tmp_path / layout), time.monotonic() - began
    while kills < KILLS:
        layout = LAYOUTS[sum(datasets.values()) % 3]
        broken = replace(config, output=tmp_path / "broken", format=layout)
        _, _, seconds = wholes[layout]
        while run_and_kill(processes, broken, rng.uniform(0, seconds), at_next_shard=rng.random() < 0.3):
            kills += 1
            moments[shards_of(broken)] += 1
        files, images, _ = wholes[layout]
        assert identity(tmp_path / "broken") == images
        assert contents(tmp_path / "broken") == files
        datasets[layout] += 1
        (tmp_path / "broken").rename(tmp_path / f"done-{sum(datasets.values())}")
    print(f"{kills} kills, seed {SEED}; datasets ended whole: {dict(datasets)}; shards at the kills: {dict(moments)}")
    assert len(moments) > 2 and len(datasets) == 3


SCREENING = {
    # The micro world knows none of the names, which is refused unless names are kept as they are.
    "screen": {"screen": ("label", "blank", "duplicate"), "label_top_k": 1, "qualify_names": False},
    "balance": {"balance": ("scene",), "attributes": Path("microworld"), "balance_template": "{name} {value}"},
}


@pytest.mark.parametrize("checks", SCREENING)
def test_screened_run_killed_at_random_moments_ends_equal_to_the_whole_one(processes, config, tmp_path, checks):
    """SIGKILL, 5 times or more, while images are rejected and drawn again."""
    made = replace(config, screen_semantics="microworld", max_attempts=3, images_per_category=8)
    made = replace(made, output=tmp_path / "whole", **SCREENING[checks])
    assert not run_and_kill(processes, made, 600)
    began = time.monotonic()
    assert not run_and_kill(processes, replace(made, output=tmp_path / "timed"), 600)
    seconds, rng, kills, datasets = time.monotonic() - began, random.Random(SEED), 0, 0
    while kills < SCREENED_KILLS:
        broken = replace(made, output=tmp_path / f"broken-{datasets}")
        datasets += 1
        while run_and_kill(processes, broken, rng.uniform(0, seconds)):
            kills += 1
        assert identity(Path(broken.output)) == identity(tmp_path / "whole")
        assert contents(Path(broken.output)) == contents(tmp_path / "whole")
    attempts = Counter(row["attempt"] for row in index.read_index(tmp_path / "whole").to_pylist())
    print(f"{checks}: {kills} kills, seed {SEED}; {datasets} datasets ended whole; images by attempt: {dict(attempts)}")
    assert len(attempts) > 1


def test_workers_end_with_a_killed_run(processes, config, tmp_path):
    """No process of a killed run is left to write into the folder of the next."""
    broken = replace(config, output=tmp_path / "broken", images_per_category=400, workers=2)
    process = processes.Process(target=quiet_generate, args=(broken,))
    process.start()
    while not (tmp_path / "broken/index").exists():
        assert process.is_alive()
        time.sleep(0.01)
    children = [int(pid) for pid in _children(process.pid)]
    assert len(children) >= 2
    process.kill()
    process.join()
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in children if _alive(pid)]


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_continued_run_makes_only_the_shards_that_are_not_there(config, whole, tmp_path, monkeypatch):
    render, rendered = Renderer.render, []
    monkeypatch.setattr(Renderer, "render", lambda self, batch: rendered.extend(batch) or render(self, batch))
    broken = replace(config, output=tmp_path / "broken")
    generate(broken)
    (tmp_path / "broken/index/train-00001.parquet").unlink()
    rendered.clear()
    generate(broken)
    assert len(rendered) == 5
    assert contents(tmp_path / "broken") == contents(whole)


def test_finished_run_writes_nothing(config, whole):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert generate(config).images == 12
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_interrupted_run_goes_on(config, whole, tmp_path, monkeypatch):
    """Ctrl-C during the fourth batch, the first of the second shard."""
    render, rendered = Renderer.render, []

    def interrupting(self, batch):
        rendered.append(batch)
        if len(rendered) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return render(self, batch)

    monkeypatch.setattr(Renderer, "render", interrupting)
    broken = replace(config, output=tmp_path / "broken")
    with pytest.raises(Interrupted) as caught:
        generate(broken)
    assert caught.value.signum == signal.SIGINT
    assert len(rendered) == 4
    assert (tmp_path / "broken/index/train-00000.parquet").exists()
    generate(broken)
    assert len(rendered) == 4 + 3  # the rest of the second shard, and the third
    assert contents(tmp_path / "broken") == contents(whole)


def test_terminated_command_exits_with_143(config, tmp_path, warm_python):
    flags = ["--generator", config.generator, "--vocabulary", config.vocabulary, "--images-per-category", "400"]
    flags += ["--scheduler", "ddim", "--steps", "2", "--batch-size", "2", "--shard-size", "5"]
    process = subprocess.Popen(
        [warm_python, "-m", "lbgen", "generate", *flags, "--output", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "out/index/train-00000.parquet").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, shown = process.communicate()
    assert process.returncode == 143
    assert shown.splitlines()[-1].startswith(f"lbgen: {tmp_path / 'out'} keeps its finished shards")


def test_failing_writer_stops_the_run_with_its_cause(config, whole, tmp_path, monkeypatch):
    """A full disk, met by a writer."""
    monkeypatch.setattr(writer, "encode_images", failing_writers.full_disk)
    broken = replace(config, output=tmp_path / "broken")
    with pytest.raises(UserError, match="broken: No space left on device; nothing is lost"):
        generate(broken)
    monkeypatch.undo()
    generate(broken)
    assert contents(tmp_path / "broken") == contents(whole)


def test_memory_that_runs_out_in_a_writer_is_one_line(config, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "encode_images", failing_writers.no_memory)
    with pytest.raises(UserError, match="broken: memory ran out; give fewer --writers or a smaller --batch-size"):
        generate(replace(config, output=tmp_path / "broken"))


def test_wrong_clocks_change_nothing(config, whole, tmp_path, monkeypatch):
    """Files dated in the future and a clock that runs backwards."""
    broken = replace(config, output=tmp_path / "broken")
    generate(broken)
    for path in (tmp_path / "broken").rglob("*"):
        os.utime(path, (4e9, 4e9))
    (tmp_path / "broken/index/train-00002.parquet").unlink()
    (tmp_path / "broken/croissant.json").unlink()
    now = iter(range(10**6, 0, -1))
    monkeypatch.setattr(time, "time", lambda: next(now))
    generate(broken)
    assert contents(tmp_path / "broken") == contents(whole)
