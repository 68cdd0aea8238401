"""What `lbgen generate`, `verify` and `audit` print when they begin, go on and end, off a terminal."""

import os
import re
import shlex
import signal
from dataclasses import replace

import pytest
import yaml

from lbgen.cli import main
from lbgen.errors import Interrupted
from lbgen.generation.config import GenerateConfig
from lbgen.generation.render import Renderer
from lbgen.generation.reports.lines import next_command
from lbgen.generation.run import generate
from lbgen.runs.console import Verbosity, showing


def rows(shown: str) -> dict[str, str]:
    return dict(re.split("  +", line, maxsplit=1) for line in shown.splitlines() if "  " in line)


def test_a_single_step_is_called_one(config, tmp_path, capsys):
    """As distilled generators have it."""
    generate(replace(config, output=tmp_path / "made", steps=1))
    assert rows(capsys.readouterr().out)["steps"] == "1 ddim step, guidance 2"


def test_a_run_opens_goes_on_and_ends_in_words(config, tmp_path, monkeypatch, capfd):
    """Ctrl-C in the fourth batch of seven, the first of the second shard; it is answered at once."""
    made, render, drawn = replace(config, output=tmp_path / "made"), Renderer.render, []

    def interrupting(self, images):
        drawn.append(images)
        if len(drawn) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return render(self, images)

    monkeypatch.setattr(Renderer, "render", interrupting)
    with pytest.raises(Interrupted, match="keeps its finished shards and what is drawn of others"):
        generate(made)
    shown = capfd.readouterr()
    opening = rows(shown.out)
    assert opening == {
        "generator": f"{config.generator}, no adapter",
        "prompt": '"red fox", of the first image',
        "steps": "2 ddim steps, guidance 2",
        "checks": "none",
        "categories": f'3 of {config.vocabulary}, the first is "cat"',
        "images": "12 in 3 shards, imagefolder, png",
        "output": f"{tmp_path}/made, split train",
        "device": opening["device"],
    }
    assert "going on" not in shown.out and opening["device"].endswith(", fp32")
    assert "interrupted; finishing the images that are being drawn first (once more to stop at once)" in shown.err

    result = generate(made)
    shown = capfd.readouterr()
    assert "\ngoing on from image 7 of 12\n" in shown.out  # one whole shard, and two images of the next
    assert shown.out.endswith(f"12 of 12 images of 3 categories in {tmp_path}/made\n")

    # The command that comes next is one that lbgen takes, of this dataset.
    program, *argv = shlex.split(result.next_command)
    main([*argv, "--print-config"])
    assert program == "lbgen" and argv[:2] == ["audit", str(tmp_path / "made")]
    assert yaml.safe_load(capfd.readouterr().out)["output"] == "audits/made"


def test_the_command_line_says_what_comes_next_and_a_part_of_a_run_does_not(config, tmp_path, capsys):
    assert generate(replace(config, output=tmp_path / "part", shard_of="0/2")).next_command == ""
    assert "going on" not in capsys.readouterr().out
    generate(replace(config, output=tmp_path / "part", shard_of="1/2"))
    assert "going on from image 7 of 12" in capsys.readouterr().out  # the first and the last shard are the first part
    capsys.readouterr()
    flags = ["--generator", config.generator, "--vocabulary", config.vocabulary, "--images-per-category", "1"]
    flags += ["--scheduler", "ddim", "--steps", "1", "--batch-size", "3", "--output", str(tmp_path / "made")]
    main(["generate", "--recipe", "fast-dpm", *flags])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "lbgen generate, recipe fast-dpm"
    assert lines[-1] == f"next: lbgen audit {tmp_path}/made --output audits/made"
    main(["generate", *flags, "--quiet"])
    assert capsys.readouterr() == ("", "")


def test_in_the_micro_world_the_audit_has_its_language_space(config, tmp_path):
    made = replace(config, output=tmp_path / "made", generator="microworld", vocabulary="microworld", steps=1)
    command = generate(replace(made, images_per_category=1, batch_size=12)).next_command
    assert "--semantics microworld" in command


def test_a_dataset_on_object_storage_is_verified_next_because_audits_read_folders():
    """The command for each kind of output is one that takes it."""
    assert next_command(GenerateConfig(output="s3://bucket/animals")) == "lbgen verify s3://bucket/animals"


def test_a_comparison_shows_how_far_it_is_and_quiet_leaves_what_it_found(whole, capsys):
    main(["verify", str(whole), "--verbose"])
    assert re.findall(r"^verify: (\d) of 3 shards", capsys.readouterr().err, re.MULTILINE) == ["1", "2", "3"]
    main(["verify", str(whole), "--quiet"])
    assert capsys.readouterr() == (f"3 of 3 shards of {whole} are whole\n", "")


def test_a_traceback_is_shown_to_those_who_ask_for_one(capsys, tmp_path):
    for flags, has_it in (([], False), (["--verbose"], True)):
        with pytest.raises(SystemExit) as ended:
            main(["verify", str(tmp_path), *flags])
        shown = capsys.readouterr().err
        assert ended.value.code == 2 and ("Traceback" in shown) == has_it
        assert shown.splitlines()[-1].startswith(f"lbgen: {tmp_path}: no dataset.yaml")


def test_verbose_lists_settings_versions_and_every_batch(config, tmp_path, capsys):
    with showing(Verbosity.VERBOSE):
        generate(replace(config, output=tmp_path / "made"))
    shown = capsys.readouterr()
    assert "\nshard_size: 5\n" in shown.out and "versions: lbgen " in shown.out
    finished = re.findall(r"^generate: (\d+) of 12 images", shown.err, re.MULTILINE)
    assert [int(number) for number in finished] == [2, 4, 5, 7, 9, 10, 12]
