import ast
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import lbgen
from lbgen.runs.signals import noted_signals


def test_first_signal_is_noted_and_the_second_acts_as_before():
    """Against what Python does by itself with SIGINT: KeyboardInterrupt."""
    with noted_signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with noted_signals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_works_in_a_thread():
    """Only the main thread may set handlers; elsewhere a run simply cannot be interrupted."""
    lists = []

    def run():
        with noted_signals() as signals:
            lists.append(signals)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert lists == [[]]


BUSY = """
import hashlib, signal
from lbgen.runs.signals import noted_signals
signal.signal(signal.SIGINT, signal.default_int_handler)
with noted_signals("the update") as signals:
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # a call into C of many minutes
"""


@pytest.mark.parametrize(("signum", "what"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_the_first_signal_is_answered_at_once_also_while_python_is_in_a_long_call(signum, what):
    """Python's own handler would run after the call; the line is read while the program is still in it."""
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "busy\n"
        process.send_signal(signum)
        assert process.stderr.readline() == f"lbgen: {what}; finishing the update first (once more to stop at once)\n"
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


SLOW = """
import multiprocessing, os, time
from lbgen.runs.processes import spawned
if multiprocessing.current_process().name != "MainProcess":
    os.write(1, b"importing")
    time.sleep(1)
def begin():
    spawned.begin()
def work():
    return os.getpid()
"""
STARTING = """
import multiprocessing, signal, slow
from concurrent.futures import ProcessPoolExecutor
from lbgen.runs.processes.spawned import starting
signal.signal(signal.SIGINT, signal.default_int_handler)
pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), slow.begin)
try:
    with starting():
        future = pool.submit(slow.work)
    future.result()
except KeyboardInterrupt:
    print(" interrupted", future.result() in pool._processes)
"""
STARTING_ONE = """
import multiprocessing, signal, slow
from lbgen.runs.processes.spawned import starting
signal.signal(signal.SIGINT, signal.default_int_handler)
process = multiprocessing.get_context("spawn").Process(target=slow.begin)
try:
    with starting():
        process.start()
    process.join()
except KeyboardInterrupt:
    process.join()
    print(" interrupted", process.exitcode == 0)
"""


@pytest.mark.parametrize("program", [STARTING, STARTING_ONE], ids=["a pool", "the first process"])
def test_ctrl_c_while_a_process_imports_ends_the_one_that_started_it_alone(program, tmp_path):
    """As a terminal sends it, to the whole group: the new process goes on, and shows nothing."""
    (tmp_path / "slow.py").write_text(SLOW)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}, start_new_session=True,
    )  # fmt: skip
    assert process.stdout.read(9) == "importing"
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60) == (" interrupted True\n", "") and process.returncode == 0


def test_processes_that_load_data_leave_ctrl_c_to_the_one_that_started_them():
    """Every call of torch's DataLoader in the source says so; else a worker of it may show a traceback."""
    trees = (ast.walk(ast.parse(path.read_text())) for path in Path(lbgen.__file__).parent.rglob("*.py"))
    calls = [node for tree in trees for node in tree if isinstance(node, ast.Call)]
    loaders = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "DataLoader"]
    given = [{each.arg: ast.unparse(each.value) for each in call.keywords} for call in loaders]
    assert len(given) >= 6 and {each.get("worker_init_fn") for each in given} == {"heed_no_signals"}


def test_the_wakeup_descriptor_is_put_back():
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    with noted_signals("this"):
        pass
    assert signal.set_wakeup_fd(before) == before


FORKED = """
import os, time
from lbgen.runs.signals import noted_signals
with noted_signals("the update"):
    child = os.fork()
    if not child:
        os.close(1)
        time.sleep(60)
print(child, flush=True)
"""


def test_a_process_that_was_forked_meanwhile_does_not_hold_the_end_up():
    """A worker that loads images lives on for a while, and has inherited every descriptor."""
    process = subprocess.Popen([sys.executable, "-c", FORKED], stdout=subprocess.PIPE, text=True)
    timer = threading.Timer(20, process.kill)
    timer.start()
    child = process.stdout.readline()
    timer.cancel()
    assert child, "it did not end"
    os.kill(int(child), signal.SIGKILL)
    assert process.wait(20) == 0
