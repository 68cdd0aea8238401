"""lbgen from Python: configurations, recipes, and what type checkers and `help()` say."""

import dataclasses
import doctest
import inspect
import pydoc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from mypy import api
from PIL import Image

import lbgen
from lbgen.cli import VERBS
from lbgen.configuration import flags
from lbgen.configuration.recipes import RECIPES
from lbgen.errors import UserError
from lbgen.models import training

CONFIGS = [name for name in lbgen.PUBLIC if name.endswith("Config")]
RESULTS = [name for name in lbgen.PUBLIC if name.endswith(("Result", "Estimate"))]
VALUES = ["Batch", "Category"]
FUNCTIONS = [name for name in lbgen.PUBLIC if name[0].islower()]


def refusal(call, *arguments, **options) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments, **options)
    return str(error.value)


# ---- configurations ----


def test_a_recipe_from_python_is_its_file_with_the_given_fields_changed():
    """Against the recipe as PyYAML reads it."""
    values = yaml.safe_load((RECIPES / "align/microworld.yaml").read_text())
    config = lbgen.AlignConfig.from_recipe("microworld", output="runs/a", rank=4)
    assert (config.output, config.rank) == ("runs/a", 4) and values["rank"] == 16
    assert all(getattr(config, name) == values[name] for name in ("batch_size", "scheduler", "vocabulary", "max_steps"))


def test_every_config_that_takes_recipes_on_the_command_line_takes_them_from_python(tmp_path):
    (tmp_path / "own.yaml").write_text("output: elsewhere\n")
    for verb in VERBS.values():
        if verb.takes_recipes:
            config_class = getattr(lbgen, verb.config_class)
            assert config_class.from_recipe(tmp_path / "own.yaml").output == "elsewhere"


@pytest.mark.parametrize(
    ("recipe", "fields", "message"),
    [
        ("papr", {}, "--recipe papr: no such file, nor one of the built-in recipes (independent, microworld"),
        ("fast-dpm", {}, "--recipe fast-dpm: it belongs to lbgen generate; lbgen align has independent, microworld, "),
        ("paper", {"stepps": 3}, "--stepps: no such field; did you mean steps?"),
        ("paper", {"steps": "ten"}, '--steps: "ten" is not a whole number'),
        ("paper", {"independence_r1": 1.0}, "--independence-r1: this version of lbgen no longer has this field; "),
    ],
)
def test_a_wrong_recipe_is_refused_as_on_the_command_line(recipe, fields, message):
    assert refusal(lbgen.AlignConfig.from_recipe, recipe, **fields).startswith(message)


def test_without_a_recipe_an_adapter_brings_its_settings(tmp_path):
    """As in `lbgen generate --adapter`; the constructor takes the values that it is given and no others."""
    training.write(tmp_path, lbgen.AlignConfig(scheduler="ddim", steps=12), [])
    config = lbgen.GenerateConfig.from_recipe(None, adapter=str(tmp_path))
    assert (config.scheduler, config.steps, config.adapter) == ("ddim", 12, tmp_path)
    assert lbgen.GenerateConfig(adapter=str(tmp_path)).steps == 50


def test_the_settings_of_an_adapter_in_the_home_folder_are_found(tmp_path, monkeypatch):
    """Against the file there: "~" in a recipe or in --adapter=~/x is not expanded by a shell."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "adapter").mkdir()
    training.write(tmp_path / "adapter", lbgen.AlignConfig(scheduler="ddim", steps=12), [])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("adapter: ~/adapter\n")
    for config in (
        lbgen.GenerateConfig.from_recipe(recipe),
        lbgen.GenerateConfig.from_recipe(None, adapter="~/adapter"),
    ):
        assert (config.scheduler, config.steps, config.adapter) == ("ddim", 12, tmp_path / "adapter")


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("AlignConfig", {"steps": "ten"}, '--steps: "ten" is not a whole number'),
        ("AlignConfig", {"steps": 2.5}, "--steps: 2.5 is not a whole number"),
        ("AlignConfig", {"steps": True}, "--steps: true is not a whole number"),
        ("AlignConfig", {"output": None}, "--output: none is not text (quote it)"),
        ("AlignConfig", {"scheduler": "euler"}, '--scheduler: "euler" is not one of ddpm, ddim, pndm, dpm++'),
        ("AlignConfig", {"learning_rate": float("nan")}, "--learning-rate: nan is not a finite number"),
        ("AlignConfig", {"compile": "yes"}, '--compile: "yes" is not true or false'),
        ("AlignConfig", {"adam_betas": 0.9}, "--adam-betas: 0.9 is not a list of 2 values"),
        ("GenerateConfig", {"screen": "label"}, '--screen: "label" is not a list of values'),
        ("GenerateConfig", {"balance": "scene"}, '--balance: "scene" is not a list of values'),
        ("GenerateConfig", {"adapter": 3}, "--adapter: 3 is not a path"),
        ("GenerateConfig", {"guidance_interval": (1.0,)}, "--guidance-interval: 1.0 is not a list of 2 values"),
        ("AuditConfig", {"seed": -1}, "--seed -1: give 0 or more, below 2**63"),
        ("QuickstartConfig", {"align_recipe": "paper"}, '--align-recipe: "paper" is not one of quickstart, independ'),
        ("VerifyConfig", {"directory": 3}, "--directory: 3 is not text (quote it)"),
    ],
)
def test_a_wrong_value_is_refused_when_the_config_is_made_by_the_message_of_its_flag(name, fields, message):
    config_class = getattr(lbgen, name)
    assert refusal(config_class, **fields).startswith(message)


def test_paths_may_be_text_and_numbers_those_of_numpy():
    config = lbgen.GenerateConfig(output=Path("a"), adapter="runs/b", attributes="c.yaml", balance=["scene"])
    assert (config.output, config.adapter, config.attributes) == ("a", Path("runs/b"), Path("c.yaml"))
    align = lbgen.AlignConfig(alpha=np.float32(2), generator=Path("models/sd"), rank=np.int64(3), adam_betas=[0, 0.5])
    assert (align.alpha, align.generator, align.rank, align.adam_betas) == (2.0, "models/sd", 3, (0.0, 0.5))
    assert type(align.rank) is int and type(align.alpha) is float


def test_audit_takes_a_folder_by_its_name(tmp_path, monkeypatch):
    """Pictures of noise; what an audit measures is tested elsewhere."""
    pixels = np.random.default_rng(0)
    for label in ("fish", "key"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(2):
            noise = pixels.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "data" / label / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    assert refusal(lbgen.audit, "dat").startswith("dat: ")
    result = lbgen.audit("data", lbgen.AuditConfig(output="out", semantics="microworld"))
    assert result.page == Path("out/report.html") and result.page.is_file()


# ---- help ----


@pytest.mark.parametrize("name", CONFIGS)
def test_help_shows_the_text_of_every_field(name):
    """Against the source's literals; also of fields that are inherited."""
    config_class = getattr(lbgen, name)
    shown = " ".join(pydoc.plain(pydoc.render_doc(config_class)).replace("|", " ").split())
    texts = flags.field_help(config_class)
    for field in dataclasses.fields(config_class):
        assert f"{field.name}: " in shown and " ".join(texts[field.name].text.replace("|", " ").split()) in shown
    assert " at 0x" not in shown


@pytest.mark.parametrize("name", [*RESULTS, *VALUES])
def test_help_shows_what_a_result_holds(name):
    shown = " ".join(pydoc.plain(pydoc.render_doc(getattr(lbgen, name))).replace("|", " ").split())
    texts = flags.field_help(getattr(lbgen, name))
    for field in dataclasses.fields(getattr(lbgen, name)):
        assert f"{field.name}: " in shown and " ".join(texts[field.name].text.replace("|", " ").split()) in shown


def test_importing_a_config_reads_no_source():
    """The texts are read when someone asks for them. A process of its own, because a module is imported once."""
    code = "import ast; ast.parse = None; import lbgen; lbgen.AlignConfig, lbgen.GenerateConfig"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- what is passed to functions ----


@pytest.mark.parametrize(
    ("function", "given", "message"),
    [
        (
            lbgen.generate,
            (lbgen.AlignConfig(),),
            "config: give lbgen.GenerateConfig(...), not AlignConfig",
        ),
        (lbgen.align, ("paper",), "config: give lbgen.AlignConfig(...), not str"),
        (lbgen.audit, ("data", "audits"), "config: give lbgen.AuditConfig(...), not str"),
        (lbgen.audit, (None,), "none: give datasets, by name or path, one or several"),
        (lbgen.audit, ("",), '"": give datasets, by name or path, one or several'),
        (lbgen.pretrain, (["data", 5],), "data 5: give datasets, by name or path, one or several"),
        (lbgen.transfer, (5,), "5: give backbones, by name or path, one or several"),
        (lbgen.compare, ({"a": 1},), "{'a': 1}: give transfers, by name or path, one or several"),
    ],
)
def test_what_is_no_config_and_no_place_is_refused_in_one_line(function, given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(function, *given) == message
    assert not list(tmp_path.iterdir())


def test_a_nul_character_is_refused():
    assert refusal(lbgen.GenerateConfig, output="a\0b").endswith("holds a NUL character; remove it")


# ---- docstrings and types ----


def examples(name: str) -> list[str]:
    """The statements that a public function's docstring shows."""
    text = inspect.getdoc(getattr(lbgen, name)) or ""
    return [example.source for example in doctest.DocTestParser().get_examples(text)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_says_what_it_raises_and_shows_an_example(name):
    assert "Raises UserError" in " ".join((inspect.getdoc(getattr(lbgen, name)) or "").split()) and examples(name)


USE = """\
from dataclasses import replace
import lbgen
from lbgen import AlignResult, AuditResult, GenerateResult, PlanEstimate, QuickstartResult, VerifyResult
reveal_type(lbgen.align)
reveal_type(lbgen.audit("data/animals"))
reveal_type(lbgen.AlignConfig.from_recipe("paper", output="runs/a"))
reveal_type(lbgen.GenerateConfig(adapter="runs/a/adapter").steps)
lbgen.AlignConfig(max_stepps=3)
lbgen.AlignConfig(max_steps="3")
replace(lbgen.AlignConfig(), max_stepps=3)
lbgen.algin(lbgen.AlignConfig())
"""
FOUND = [
    (4, 'Revealed type is "def (config: lbgen.alignment.config.AlignConfig, *, extra_terms: '),
    (5, 'Revealed type is "lbgen.audit.output.AuditResult"'),
    (6, 'Revealed type is "lbgen.alignment.config.AlignConfig"'),
    (7, 'Revealed type is "int"'),
    (8, 'Unexpected keyword argument "max_stepps" for "AlignConfig"; did you mean "max_steps"?'),
    (9, 'Argument "max_steps" to "AlignConfig" has incompatible type "str"; expected "int"'),
    (10, 'Unexpected keyword argument "max_stepps" for "replace" of "AlignConfig"; did you mean "max_steps"?'),
    (11, 'Module has no attribute "algin"'),
]
"""Line of USE -> what mypy has to say of it."""
SKIPPED = (
    "torch torchvision diffusers transformers accelerate peft numpy PIL pyarrow jinja2 matplotlib scipy tqdm "
    "timm sklearn huggingface_hub datasets fsspec safetensors torchmetrics pycocotools yaml"
)


def test_a_type_checker_knows_the_public_names_and_their_fields(tmp_path):
    """mypy on a user's file. It also reads the examples of all docstrings, and finds no fault in them."""
    sections = "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in SKIPPED.split())  # for speed
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nignore_missing_imports = true\n{sections}")
    (tmp_path / "use.py").write_text(USE)
    for name in FUNCTIONS:
        (tmp_path / f"shown_{name}.py").write_text("".join(examples(name)))
    options = ["--config-file", str(tmp_path / "mypy.ini"), "--cache-dir", str(tmp_path), "--no-error-summary"]
    output, errors, _ = api.run([*options, *map(str, tmp_path.glob("*.py"))])
    faults = [line for line in output.splitlines() if " defined " not in line]
    assert (errors, len(faults)) == ("", len(FOUND)), output
    for fault, (line, text) in zip(faults, FOUND, strict=True):
        assert f"use.py:{line}:" in fault and text in fault, output
