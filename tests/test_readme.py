"""The README's commands, run as they stand but for models and sizes that a test can bear (the last flag counts)."""

import re
import shlex
from pathlib import Path

from lbgen import cli

ROOT = Path(__file__).parents[1]
SMALL = {
    "align": "--precision fp32 --max-steps 1 --steps 3 --differentiated-steps 2 --batch-size 2 --rank 2 "
    "--evaluation-images 2 --logger none",
    "plan": "--steps 3 --images-per-category 2",
    "generate": "--steps 3 --images-per-category 2",
}


def commands():
    """Every command line of the README's code blocks, continuation lines joined."""
    text = "\n".join(re.findall(r"```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def test_lbgen_commands_run_in_their_order(tmp_path, monkeypatch, tiny_sd_folder, tiny_clip_folder):
    monkeypatch.chdir(tmp_path)
    Path("animals.txt").write_text("cat\ndog\nant\n")
    run = [argv[1:] for argv in commands() if argv[0] == "lbgen"]
    assert [argv[0] for argv in run] == ["align", "plan", "generate", "verify"]
    for argv in run:
        models = [] if argv[0] == "verify" else ["--generator", str(tiny_sd_folder)]
        if argv[0] == "align":
            models += ["--semantics", str(tiny_clip_folder)]
        cli.main([*argv, *models, *SMALL.get(argv[0], "").split()])
    assert len(list(Path("data/animals/train").glob("*/*.png"))) == 6


def test_make_targets_exist():
    targets = [argv[1] for argv in commands() if argv[0] == "make"]
    makefile = (ROOT / "Makefile").read_text()
    assert targets == ["quickstart", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
