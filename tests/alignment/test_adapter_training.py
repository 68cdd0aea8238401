"""What an adapter was trained with goes on to the runs that generate with it (models/training.py)."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from lbgen.alignment import checkpoint
from lbgen.alignment.reports import adapter_card
from lbgen.alignment.run import align
from lbgen.configuration.recipes import resolve
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.inputs import adapter_sha256, training_differences
from lbgen.generation.run import generate, plan_dataset
from lbgen.models.registry import GENERATORS
from lbgen.runs.storage import open_store
from lbgen.vocabulary.vocabulary import load_vocabulary

TRAINED = {
    "qualify_names": False, "prompt_template": "a {name}", "scheduler": "ddim", "steps": 2,
    "guidance_scale": 1.5, "guidance_rescale": 0.25, "true_cfg_scale": 1.0, "pipeline_instruction": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def aligned(tiny_config, tmp_path_factory):
    """A run on two of ImageNet's categories that share a name, as recipe paper has them."""
    folder = tmp_path_factory.mktemp("aligned")
    (folder / "cranes.txt").write_text("n02012849\nn03126707\nn01440764\n")
    config = replace(
        tiny_config, output=folder / "run", vocabulary=str(folder / "cranes.txt"), differentiated_steps=1, max_steps=1,
        evaluate_every=0, text_template="this is {name}", **TRAINED,
    )  # fmt: skip
    align(config)
    return config


@pytest.fixture
def flags(aligned, tmp_path):
    """What a user must say to generate with it."""
    adapter = Path(shutil.copytree(aligned.folder / "adapter", tmp_path / "adapter"))
    return {
        "adapter": adapter, "vocabulary": aligned.vocabulary, "generator": aligned.generator, "batch_size": 3,
        "output": tmp_path / "data", "images_per_category": 1, "writers": 1,
    }  # fmt: skip


def test_the_folder_says_what_the_adapter_was_trained_with(aligned):
    """Beside the adapter and in its checkpoint; without it the run publishes its adapter again."""
    file = aligned.folder / "adapter/training.json"
    content = json.loads(file.read_text())
    names = {"n02012849": "crane", "n03126707": "crane", "n01440764": "tench"}
    assert content == {"version": 1, **TRAINED, "text_template": "this is {name}", "names": names}
    newest = checkpoint.newest(aligned.folder)
    assert (newest / "adapter/training.json").read_bytes() == file.read_bytes()
    file.unlink()
    align(aligned)
    assert json.loads(file.read_text()) == content


def test_generate_has_the_names_and_the_trajectory_of_the_training(aligned, flags, capsys):
    """Without a flag; against the settings above."""
    config = resolve(GenerateConfig, None, flags)
    assert {name: getattr(config, name) for name in TRAINED} == TRAINED
    assert config.screen_template == "this is {name}"
    made, _ = plan_dataset(config, open_store(config.output))
    assert [category.name for category in made.categories] == ["crane", "crane", "tench"]
    assert generate(config).finished
    shown = capsys.readouterr().out
    assert "trained" not in shown and "approximated" not in shown


def test_flags_and_recipes_win_and_one_line_says_what_differs(flags, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("scheduler: dpm++\nqualify_names: true\n")
    (tmp_path / "more.csv").write_text("id,name\n,n02012849\n,n03126707\nn01440764,fish\nn1,owl\nn2,cup\n")
    changed = flags | {"steps": 3, "vocabulary": str(tmp_path / "more.csv")}
    config = resolve(GenerateConfig, str(tmp_path / "mine.yaml"), changed)
    assert (config.scheduler, config.steps, config.qualify_names, config.guidance_scale) == ("dpm++", 3, True, 1.5)
    assert generate(config).finished
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "trained" in line]
    assert line == (
        "not as the adapter was trained: scheduler dpm++ (trained: ddim); steps 3 (trained: 2); qualify_names true "
        '(trained: false); 3 categories have another name, such as "crane bird" (trained: "crane"); '
        '2 categories have no part in the training, such as "owl"'
    )
    other = replace(config, screen=("label",), screen_template="no {name}")
    found = training_differences(other, load_vocabulary("microworld").categories)
    assert "screen_template no {name} (trained: this is {name})" in found


def test_an_adapter_without_the_file_is_the_same_adapter_with_the_defaults_of_before(flags):
    before = adapter_sha256(GenerateConfig(adapter=flags["adapter"]))
    (flags["adapter"] / "training.json").unlink()
    assert resolve(GenerateConfig, None, flags) == GenerateConfig(**flags)
    assert adapter_sha256(GenerateConfig(adapter=flags["adapter"])) == before


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"steps": "many"}, 'steps: "many" is not a whole number'),
        ({"steps": -1}, "--steps -1: give 1 or more"),
        ({"steps": True}, "steps: true is not a whole number"),
        ({"guidance_scale": 1e999}, "not valid JSON"),
        ({"guidance_rescale": [0]}, "guidance_rescale: "),
        ({"scheduler": "\x1b[2J"}, "is not one of ddpm, ddim, pndm, dpm++"),
        ({"prompt_template": "cat"}, 'write "{name}" where'),
        ({"qualify_names": "no"}, "qualify_names: "),
        ({"names": {"a": 1}}, "names, [...]: Expected str, got int"),
        ({"names": ["a"]}, "names: Expected object, got array"),
        ({"version": 2}, "not of version 1"),
    ],
)
def test_a_received_file_is_checked_like_flags(flags, change, expected):
    path = flags["adapter"] / "training.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError) as refused:
        resolve(GenerateConfig, None, flags)
    assert str(refused.value).startswith(str(path)) and expected in str(refused.value)
    assert str(refused.value).endswith("restore the file, or remove it to generate with lbgen's own defaults")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def nested(path: Path) -> None:
    path.write_text("[" * 100_000)


def incomplete(path: Path) -> None:
    path.write_text('{"version": 1, "names": {}}')


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def huge(path: Path) -> None:
    os.truncate(path, 10**12)


@pytest.mark.parametrize("damage", [cut, nested, incomplete, pipe, huge])
def test_a_damaged_file_is_one_line(flags, damage):
    damage(flags["adapter"] / "training.json")
    with pytest.raises(UserError, match="training.json[:,] .*(restore the file, or remove|give a regular file)"):
        resolve(GenerateConfig, None, flags)


def test_names_in_a_received_file_are_shown_escaped_and_short(flags, capsys):
    path = flags["adapter"] / "training.json"
    content = json.loads(path.read_text())
    content["names"]["n01440764"] = "\x1b[2J" + "x" * 9_000
    path.write_text(json.dumps(content))
    generate(resolve(GenerateConfig, None, flags))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "trained" in line]
    assert line.isprintable() and len(line) < 250


def test_a_checkpoint_without_the_file_that_its_marker_names_is_not_whole(aligned, tmp_path):
    run = Path(shutil.copytree(aligned.folder, tmp_path / "run"))
    newest = checkpoint.newest(run)
    (newest / "adapter/training.json").unlink()
    assert checkpoint.newest(run) != newest


def test_the_card_is_read_by_the_hub_names_no_folder_and_draws(aligned, tmp_path):
    """By the Hub's own reader; its example as it stands, with the places of the models filled in."""
    card = ModelCard.load(aligned.folder / "adapter/README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("diffusers", "text-to-image")
    assert "base_model" not in card.data.to_dict()  # the generator is a folder
    assert str(Path(aligned.generator).parent) not in card.content
    (code,) = re.findall(r"```python\n(.*?)```", card.content, re.DOTALL)
    code = code.replace("'GENERATOR'", repr(aligned.generator))
    code = code.replace('"ADAPTER"', repr(str(aligned.folder / "adapter")))
    drawn: dict = {}
    exec(code, drawn)
    assert drawn["image"].size == (32, 32)


def test_a_card_of_a_generator_on_the_hub_links_to_it(tmp_path, tiny_config):
    adapter_card.write(tmp_path, replace(tiny_config, generator="sd15"), load_vocabulary(tiny_config.vocabulary))
    card = ModelCard.load(tmp_path / "README.md")
    assert f"from_pretrained('{GENERATORS['sd15']}')" in card.content
    data = card.data
    assert (data.base_model, data.base_model_relation) == (GENERATORS["sd15"], "adapter")


def test_what_a_user_adds_to_the_card_stays(aligned):
    """Also when the adapter is published again."""
    card = aligned.folder / "adapter/README.md"
    card.write_text(card.read_text() + "\nLicense: mine.\n")
    (aligned.folder / "adapter/training.json").unlink()
    align(aligned)
    assert (aligned.folder / "adapter/training.json").is_file()
    assert card.read_text().endswith("License: mine.\n")


def test_a_card_calls_a_generator_of_lbgen_by_its_name(tmp_path, tiny_config):
    adapter_card.write(tmp_path, replace(tiny_config, generator="microworld"), load_vocabulary(tiny_config.vocabulary))
    text = (tmp_path / "README.md").read_text()
    assert "# LoRA for microworld" in text and "lbgen generate --generator microworld --adapter" in text


def test_a_card_takes_no_folder_for_a_name_that_generate_would_find(tmp_path, tiny_config):
    adapter_card.write(tmp_path, tiny_config, load_vocabulary(tiny_config.vocabulary))
    text = (tmp_path / "README.md").read_text()
    assert "`GENERATOR` the folder of " in text and "lbgen generate --generator GENERATOR --adapter" in text
