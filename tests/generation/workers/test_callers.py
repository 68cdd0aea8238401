"""`lbgen.generate` from a script without a main guard, from standard input, and from a notebook."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from folders import contents
from notebooks import execute

from lbgen.configuration.saved import plain

CODE = """
import json
import lbgen
print("begun")
settings = json.loads('''{settings}''')
for workers in {workers}:
    result = lbgen.generate(lbgen.GenerateConfig(**settings, output=f"{folder}/{{workers}}", workers=workers))
    print(result.images, "made")
"""


@pytest.fixture
def code(config, tmp_path):
    """Code that makes a small dataset with each of these numbers of workers."""
    settings = {name: value for name, value in plain(config).items() if name not in ("output", "workers")}
    return lambda *workers: CODE.format(settings=json.dumps(settings), folder=tmp_path, workers=workers)


def ensure_made_once(shown: str, folder: Path, whole: Path, *workers: int) -> None:
    """The datasets are that of the test's own process, and the code ran once."""
    own = [line for line in shown.splitlines() if line == "begun" or line.endswith(" made")]
    assert own == ["begun", *["12 made"] * len(workers)]
    assert all(contents(folder / str(number)) == contents(whole) for number in workers)


@pytest.mark.parametrize(("name", "workers"), [("make.py", (1, 2)), ("-", (1, 2))])
def test_a_script_without_a_main_guard_runs_once_whatever_the_number_of_workers(
    code, whole, tmp_path, name, workers, warm_python
):
    """The script is a file, or comes from standard input; the file's is a Python that nothing was imported in.

    The workers' has the libraries in both: their start is that of `multiprocessing`, with the script's own path.
    """
    start = f"import multiprocessing\nmultiprocessing.set_executable({warm_python!r})\n"
    (tmp_path / "make.py").write_text(start + code(*workers))
    with (tmp_path / "make.py").open() as given:
        command = [warm_python if name == "-" else sys.executable, name]
        ended = subprocess.run(command, stdin=given, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert ended.returncode == 0, ended.stderr
    ensure_made_once(ended.stdout, tmp_path, whole, *workers)


def test_a_notebook_makes_a_dataset_with_one_worker_and_with_two(code, whole, tmp_path, warm_python):
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code(1, 2))])
    execute(notebook, warm_python, tmp_path)
    shown = "".join(output.get("text", "") for output in notebook.cells[0].outputs if output.get("name") == "stdout")
    ensure_made_once(shown, tmp_path, whole, 1, 2)
