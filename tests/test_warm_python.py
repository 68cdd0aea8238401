"""The Python that has imported the libraries is like Python to its caller: both run the same programs here."""

import os
import signal
import subprocess
import sys
import time

import pytest

SAYS = """
import multiprocessing, os, sys
print(__name__, sys.argv[1:], os.getcwd(), os.environ.get("GIVEN"), sys.stdin.read(), flush=True)
print("to the other", file=sys.stderr)
"""
ENDINGS = {
    "as it should": "pass",
    "a code": "raise SystemExit(3)",
    "a message": "raise SystemExit('stopped')",
    "an error": "1 / 0",
    "interrupted": "raise KeyboardInterrupt",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "what is done at the end": "import atexit; atexit.register(print, 'end')",
    "a process of its own": "import subprocess; subprocess.run([sys.executable, '-c', 'print(1 + 1)'])",
    "from a spawned process": "multiprocessing.get_context('spawn').Process(target=print, args=('there',)).start()",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_programs_say_and_end_the_same(warm_python, tmp_path, ending):
    given = {"input": "typed", "cwd": tmp_path, "env": {"GIVEN": "x", "PATH": os.environ["PATH"]}}

    def run(python: str) -> tuple[int, str, str]:
        command = [python, "-c", SAYS + ENDINGS[ending], "first", "second"]
        ended = subprocess.run(command, **given, capture_output=True, text=True)
        return ended.returncode, ended.stdout, ended.stderr.splitlines()[-1]

    assert run(warm_python) == run(sys.executable)


def test_a_file_that_is_given_is_open_by_its_number_and_no_other_is(warm_python):
    reading, writing = os.pipe()
    program = f"import os; os.write({writing}, str(sorted(os.listdir('/proc/self/fd'))).encode())"
    subprocess.run([warm_python, "-c", program], pass_fds=[writing], check=True)
    found = set(map(int, eval(os.read(reading, 1000))))
    assert {0, 1, 2, writing} <= found and reading not in found and len(found) <= 6  # the shell's, and the listing's


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_who_ends_the_caller_ends_the_process(warm_python, tmp_path, signum):
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"
    process = subprocess.Popen([warm_python, "-c", program], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    process.send_signal(signum)
    assert process.wait(60) == -signum
    while os.path.exists(f"/proc/{pid}"):
        time.sleep(0.01)


def test_what_a_program_from_standard_input_knows_of_itself(warm_python, tmp_path):
    """By which multiprocessing would import it again."""
    program = "import sys; print(__name__, __spec__, __file__, sys.argv)"
    given = {"input": program, "capture_output": True, "text": True, "check": True}
    ours, theirs = (subprocess.run([python, "-", "x"], **given).stdout for python in (warm_python, sys.executable))
    assert ours == theirs == "__main__ None <stdin> ['-', 'x']\n"


def test_the_libraries_are_there_and_the_program_is_the_main_module(warm_python, tmp_path):
    (tmp_path / "script.py").write_text("import sys; print('torch' in sys.modules, __name__, __file__, sys.path[0])")
    said = subprocess.run([warm_python, tmp_path / "script.py"], capture_output=True, text=True, check=True).stdout
    assert said == f"True __main__ {tmp_path}/script.py {tmp_path}\n"
