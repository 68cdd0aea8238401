"""Many workers make the dataset that one makes; two runs never write into one folder."""

import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import failing_writers
import pytest
import torch
from command_line import spawned_in
from folders import contents

from lbgen.errors import UserError
from lbgen.generation.run import generate, plan_dataset
from lbgen.generation.workers import loading, local, ray, writer
from lbgen.generation.workers.dispatch import agreed_context
from lbgen.runs.lock import WHOLE, locked
from lbgen.runs.processes.ray import actors_to_start, join_cluster
from lbgen.runs.storage import open_store


@pytest.mark.usefixtures("warm_processes")
def test_processes_make_what_one_makes(config, whole, tmp_path):
    generate(replace(config, output=tmp_path / "made", workers=2, writers=2))
    assert contents(tmp_path / "made") == contents(whole)


def test_process_that_is_killed_ends_the_run_in_one_line(config, whole, tmp_path, warm_python):
    """And the run goes on when started again."""
    command = [warm_python, "-m", "lbgen", "generate", "--generator", config.generator, "--vocabulary"]
    command += [config.vocabulary, "--images-per-category", "400", "--scheduler", "ddim", "--steps", "2"]
    command += ["--batch-size", "2", "--shard-size", "5", "--workers", "2", "--output", str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    while not list((tmp_path / "out/index").glob("*")) and process.poll() is None:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[1]
    worker, _ = spawned_in(tmp_path)
    os.kill(worker, signal.SIGKILL)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 2
    expected = f"pid {worker}) was killed by SIGKILL; if memory ran out, give fewer --workers"
    assert [line for line in shown.splitlines() if "lbgen: " in line and expected in line], shown


@pytest.mark.usefixtures("warm_processes")
def test_bug_in_a_process_is_a_traceback_and_no_mistake_of_the_users(config, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(local, "serve", failing_writers.bug)
    with pytest.raises(RuntimeError, match="worker process .* failed, see its traceback above"):
        generate(replace(config, output=tmp_path / "made", workers=2))
    assert "ZeroDivisionError: a bug of ours" in capfd.readouterr().err


def test_worker_makes_its_gpu_the_current_one_before_it_loads(config, monkeypatch):
    """On a machine without GPUs: the calls, in their order."""
    calls = []
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    monkeypatch.setattr(loading, "load_generator", lambda *names, device, **options: calls.append(f"load on {device}"))
    with pytest.raises(AttributeError):  # of a generator that is None
        loading.load_prepared_generator(config, "cuda:1")
    assert calls == ["cuda:1", "load on cuda:1"]


def test_parts_of_a_run_make_the_whole(config, whole, tmp_path):
    """As in a job array: no part knows of another, in any order; the last one to end describes the dataset."""
    parts = [replace(config, output=tmp_path / "made", shard_of=f"{i}/3") for i in (2, 0, 1)]
    assert [generate(part).finished for part in parts] == [False, False, True]
    assert contents(tmp_path / "made") == contents(whole)
    assert generate(replace(parts[0], shard_of="3/3")).finished  # counted from one, the last


@pytest.mark.usefixtures("warm_processes")
def test_part_with_workers_of_its_own_is_not_stopped_by_what_a_killed_one_left(config, whole, tmp_path):
    """Half-made shards lie in the staging folder; another part's stay there."""
    part = replace(config, output=tmp_path / "made", shard_of="0/2", workers=2)
    left = [tmp_path / f"made/.staging/{name}/train-00000/x" for name in ("0-of-2.0", "1-of-2.0")]
    for path in left:
        path.parent.mkdir(parents=True)
        path.touch()
    generate(part)
    assert left[1].exists()
    generate(replace(part, shard_of="1/2"))
    assert contents(tmp_path / "made") == contents(whole)


@pytest.mark.parametrize("part", ["4/3", "1", "a/b", "-1/2", "0/0"])
def test_part_that_is_none_is_refused(config, part):
    with pytest.raises(UserError, match="--shard-of"):
        replace(config, shard_of=part)


# ---- locks, between processes ----


def hold(path: Path, part: tuple[int, int] | None, held, release) -> None:
    with locked(path, "out", part):
        held.set()
        release.wait(120)


@pytest.fixture
def holder(warm_processes):
    """Start a process that holds a lock; ends it afterwards."""
    context = multiprocessing.get_context("forkserver")
    started = []

    def start(path: Path, part: tuple[int, int] | None):
        held, release = context.Event(), context.Event()
        process = context.Process(target=hold, args=(path, part, held, release))
        process.start()
        started.append((process, release))
        assert held.wait(120)  # its process imports torch first
        return process

    yield start
    for process, release in started:
        if process.is_alive():
            release.set()
        process.join()


@pytest.mark.parametrize(
    "first, second, compatible",
    [
        (None, None, False),
        (None, (0, 2), False),
        ((0, 2), None, False),
        ((0, 2), (0, 2), False),
        ((0, 2), (1, 2), True),
        ((1, 2), (1, 3), True),
    ],
)
def test_second_run_is_refused_unless_both_are_different_parts(holder, tmp_path, first, second, compatible):
    holder(tmp_path / ".lock", first)
    if compatible:
        with locked(tmp_path / ".lock", "out", second):
            pass
    else:
        with (
            pytest.raises(UserError, match="--output out: another run is writing there"),
            locked(tmp_path / ".lock", "out", second),
        ):
            pass


def test_a_second_run_of_one_process_is_refused_and_the_first_keeps_its_lock(tmp_path):
    """A process's record locks do not exclude itself, and end when it closes the file once."""
    path = tmp_path / "out/.lock"
    with locked(path, "out"):
        for part in (None, (0, 2)):
            with pytest.raises(UserError, match="this process is writing there already"), locked(path, "out", part):
                pass
        program = f"import fcntl; fcntl.lockf(open({str(path)!r}, 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, {WHOLE})"
        other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert "BlockingIOError" in other.stderr
    assert not path.parent.exists()
    with locked(path, "out"):
        pass


def test_runs_in_threads_take_turns_and_make_the_same(config, whole, tmp_path):
    """Where they loaded their models at once, tensors of the other were without content."""
    outputs = [tmp_path / name for name in "ab"]
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda output: generate(replace(config, output=output)), outputs))
    assert [contents(output) for output in outputs] == [contents(whole)] * 2


def test_lock_of_a_dead_process_is_none(holder, tmp_path):
    process = holder(tmp_path / ".lock", None)
    process.kill()
    process.join()
    with locked(tmp_path / ".lock", "out"):
        pass


def test_lock_file_that_is_removed_while_it_is_taken_is_not_held_for_the_one_there(tmp_path, monkeypatch):
    """As by a refused run, which made it, between another's opening and locking it."""
    path, lockf = tmp_path / ".lock", fcntl.lockf
    removals = iter([path.unlink])
    monkeypatch.setattr(fcntl, "lockf", lambda *how: (next(removals, bool)(), lockf(*how)))
    with locked(path, "out"):
        assert path.exists()


def test_second_generate_is_refused_and_the_first_goes_on(config, holder, whole, tmp_path):
    generate(replace(config, output=tmp_path / "made"))
    (tmp_path / "made/index/train-00000.parquet").unlink()
    holder(tmp_path / "made/.lock", None)
    before = contents(tmp_path / "made")
    with pytest.raises(UserError, match="another run is writing there"):
        generate(replace(config, output=tmp_path / "made"))
    assert contents(tmp_path / "made") == before


# ---- Ray ----


@pytest.fixture(scope="module")
def cluster():
    """A real cluster of two nodes on this machine, a CPU each, whose workers die with the test run."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def test_ray_cluster_of_two_nodes_makes_what_one_process_makes_though_a_worker_is_killed(
    cluster, config, tmp_path, capsys
):
    """Against the same configuration by one process; the worker dies as soon as the first shard is there."""
    many = replace(config, images_per_category=20)
    generate(replace(many, output=tmp_path / "alone"))
    killed = []

    def kill_one() -> None:
        while not list((tmp_path / "ray/index").glob("*")):
            time.sleep(0.02)
        pids = [pid for pid in os.listdir("/proc") if pid.isdigit() and is_ray_worker(int(pid))]
        os.kill(int(pids[0]), signal.SIGKILL)
        killed.append(pids[0])

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    generate(replace(many, output=tmp_path / "ray", engine="ray", workers=2, ray_address=cluster.address))
    killer.join(1)
    assert killed
    assert contents(tmp_path / "ray") == contents(tmp_path / "alone")


def test_ray_replaces_workers_that_are_killed_for_memory_or_whose_machine_fails(
    cluster, config, whole, tmp_path, monkeypatch
):
    """Ray's own exceptions, raised in real actors, which hold their slot of the cluster until they are ended."""
    base = ray.RayWorker

    class Lost(base):
        def make_shard(self, context, shard):
            from ray import exceptions

            stream = super().make_shard(context, shard)
            yield next(stream)
            if self.name == "ray-1":
                raise exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.")
            if self.name == "ray-2":
                raise exceptions.NodeDiedError("The node is gone.")
            yield from stream

    monkeypatch.setattr(ray, "RayWorker", Lost)
    made = replace(config, output=tmp_path / "ray", engine="ray", workers=2, ray_address=cluster.address)
    assert generate(made).finished
    assert contents(tmp_path / "ray") == contents(whole)


GROWTH = 3 * 2**30
"""Bytes that the machine may use beyond those of the cluster's start, before Ray kills a worker."""


@pytest.fixture
def watched_cluster():
    """A real cluster of one CPU, whose memory monitor kills a worker once the machine uses GROWTH more than now."""
    import psutil
    from ray._private.utils import get_system_memory, get_used_memory
    from ray.cluster_utils import Cluster

    used = max(get_used_memory(), psutil.virtual_memory().used)  # of the container, and of the machine
    monitor = {"RAY_memory_usage_threshold": str((used + GROWTH) / get_system_memory())}
    monitor["RAY_memory_monitor_refresh_ms"] = "100"
    head = {"num_cpus": 1, "include_dashboard": False, "env_vars": monitor}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


@pytest.mark.skipif("LBGEN_RAY_MEMORY" not in os.environ, reason="LBGEN_RAY_MEMORY=1 takes up to 9 GB for a moment")
def test_a_worker_that_ray_kills_for_memory_is_replaced(watched_cluster, config, whole, tmp_path, monkeypatch):
    """By Ray's own monitor: the first actor takes memory after its first batch until it is killed."""

    class Growing(ray.RayWorker):
        def make_shard(self, context, shard):
            stream = super().make_shard(context, shard)
            yield next(stream)
            if self.name == "ray-1":
                (tmp_path / "grows").touch()
                taken = [bytes([1]) * 2**26 for _ in range(3 * GROWTH // 2**26)]
                (tmp_path / f"lived with {len(taken)}").touch()
            yield from stream

    monkeypatch.setattr(ray, "RayWorker", Growing)
    generate(replace(config, output=tmp_path / "ray", engine="ray", ray_address=watched_cluster.address))
    assert (tmp_path / "grows").exists() and not list(tmp_path.glob("lived with *"))
    assert contents(tmp_path / "ray") == contents(whole)


def test_ray_worker_that_dies_of_memory_while_it_loads_is_one_line(cluster, config, tmp_path, monkeypatch):
    class Lost(ray.RayWorker):
        def preflight(self, config, plan, recorded):
            from ray import exceptions

            raise exceptions.OutOfMemoryError("Task was killed.\n" + "Top processes:\n" * 1000)

    monkeypatch.setattr(ray, "RayWorker", Lost)
    with pytest.raises(
        UserError, match="a Ray worker died while it loaded the generator: .*fewer --workers"
    ) as refused:
        generate(replace(config, output=tmp_path / "ray", engine="ray", ray_address=cluster.address))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600


def test_ray_asks_an_actor_what_only_the_generator_knows(cluster, config, whole, tmp_path, monkeypatch):
    """This process, like a head node without a GPU, cannot load it."""
    monkeypatch.setattr(loading, "load_generator", None)
    made = replace(config, output=tmp_path / "ray", engine="ray", ray_address=cluster.address)
    with pytest.raises(UserError, match="tokens long"):
        generate(replace(made, prompt_template="a very long photo of {name}"))
    with pytest.raises(UserError, match="--precision fp16 needs a GPU"):
        generate(replace(made, precision="fp16"))
    generate(made)
    assert contents(tmp_path / "ray") == contents(whole)


def test_ray_worker_publishes_a_shard_while_it_draws_the_next(config, whole, tmp_path, monkeypatch):
    """The actor's class, in this process; its writer publishes when told to."""
    config = replace(config, output=tmp_path / "made", writers=1)
    store = open_store(config.output)
    plan, _ = plan_dataset(config, store)
    actor = ray.RayWorker("a", "cpu", 1)
    context = agreed_context(store, config, plan, actor.preflight(config, plan), ())
    monkeypatch.setattr(writer, "publish_shard", failing_writers.publish_on_word)
    assert sum(progress.finished for progress in actor.make_shard(context, 0)) == 5
    assert not store.names("index")
    (tmp_path / "go").touch()
    assert sum(progress.finished for progress in actor.make_shard(context, 1)) == 5
    assert "train-00000.parquet" in store.names("index")
    assert list(actor.finish()) == []
    assert store.names("index") == {"train-00000.parquet", "train-00001.parquet"}


def is_ray_worker(pid: int) -> bool:
    """Whether a process is one of our actors; Ray writes what it runs into its command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::RayWorker")
    except OSError:
        return False


def test_cluster_that_does_not_answer_is_one_line(config, tmp_path):
    with pytest.raises(UserError, match="--ray-address 127.0.0.1:1: no cluster answers there"):
        generate(replace(config, output=tmp_path / "ray", engine="ray", ray_address="127.0.0.1:1"))


def test_ray_is_started_here_unless_a_cluster_is_named(cluster, monkeypatch, capsys):
    """Also while one runs on this machine, which Ray itself would join and give no slots to."""
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def joined(address: str | None, workers: int) -> tuple[int, int]:
        join_cluster(ray, address, workers)
        try:
            return int(ray.cluster_resources()["CPU"]), actors_to_start(ray, workers, address)
        finally:
            ray.shutdown()

    places = max(3, os.cpu_count() or 1)
    assert joined(None, 3) == (places, 3)
    assert joined(cluster.address, 3) == (2, 3)
    assert "the Ray cluster has slots for 2 of 3 workers" in capsys.readouterr().err
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    assert joined(None, 2) == (2, 2)
