"""Recipes that build on others, what is printed as one, and the list of those that are built in."""

from pathlib import Path

import pytest
import yaml
from command_line import refused_here

import lbgen
from lbgen.alignment.config import AlignConfig
from lbgen.cli import VERBS, main
from lbgen.configuration.recipes import RECIPES, built_in_recipes, resolve
from lbgen.errors import UserError


def printed(capsys, *argv: str) -> str:
    main(argv)
    return capsys.readouterr().out


def test_a_recipe_has_the_values_of_those_it_builds_on(tmp_path):
    """Against tables merged by hand: a file on a file in another folder, on a built-in recipe."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/a.yaml").write_text("base: microworld\nmax_steps: 7\nrank: 3\n")
    (tmp_path / "b.yaml").write_text("base: inner/a.yaml\nrank: 5\n")
    below = yaml.safe_load((RECIPES / "align/microworld.yaml").read_text())
    expected = AlignConfig(
        **{**{k: tuple(v) if isinstance(v, list) else v for k, v in below.items()}, "max_steps": 7, "rank": 5}
    )
    assert resolve(AlignConfig, str(tmp_path / "b.yaml"), {}) == expected
    assert resolve(AlignConfig, str(tmp_path / "b.yaml"), {"rank": 9}).rank == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "base: nowhere",
            "a.yaml, line 1: base nowhere: no such file, nor one of the built-in recipes (independent, microworld, ",
        ),
        ("base: 3", "a.yaml, line 1: base: give the name of a built-in recipe or a file"),
        ("base: a.yaml", "a.yaml, base: "),
        ("base: b.yaml", "b.yaml, base: "),
        ("base: fast-dpm\nsteps: 3\nscreen: []", "a.yaml, line 3: screen: no such field"),
        (
            "base: fast-dpm\nmax_steps: 3",
            "a.yaml, line 1: base fast-dpm: it belongs to lbgen generate; lbgen align has ",
        ),
    ],
)
def test_a_base_that_cannot_be_is_refused_by_file(capsys, tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "b.yaml").write_text("base: a.yaml")
    shown = refused_here(capsys, "align", "--recipe", str(tmp_path / "a.yaml"))
    assert message in shown and ("builds on this recipe itself" in shown) == (message.endswith("base: "))


@pytest.mark.parametrize("recipe", built_in_recipes())
def test_what_print_config_prints_is_itself_a_recipe(capsys, tmp_path, monkeypatch, recipe):
    monkeypatch.chdir(tmp_path)
    verb = built_in_recipes()[recipe]
    file = tmp_path / "printed.yaml"
    operands = [str(tmp_path)] if VERBS[verb].operands else []
    config_class = getattr(lbgen, VERBS[verb].config_class)
    changed = "seeds" if verb == "reproduce" else "seed"
    file.write_text(printed(capsys, verb, *operands, "--recipe", recipe, "--print-config", f"--{changed}", "7"))
    assert resolve(config_class, str(file), {}) == resolve(config_class, recipe, {changed: 7})
    assert not (Path("runs").exists() or Path("data").exists())


@pytest.mark.parametrize("verb", [verb for verb, what in VERBS.items() if what.takes_recipes])
def test_every_verb_with_recipes_prints_its_defaults(capsys, tmp_path, verb):
    operands = [str(tmp_path)] if VERBS[verb].operands else []
    values = yaml.safe_load(printed(capsys, verb, *operands, "--print-config"))
    config = getattr(lbgen, VERBS[verb].config_class)()
    assert values.keys() == vars(config).keys() and values["output"] == config.output


def test_a_runs_own_config_is_a_recipe(finished, capsys, tmp_path):
    """The file that a run wrote, with another --output."""
    recipe = str(finished.folder / "config.yaml")
    again = yaml.safe_load(printed(capsys, "align", "--recipe", recipe, "--print-config", "--output", str(tmp_path)))
    assert again == {**yaml.safe_load(Path(recipe).read_text()), "output": str(tmp_path)}


def test_recipes_are_listed_by_verb_and_shown_as_they_are(capsys):
    """Against the files themselves."""
    listed = printed(capsys, "recipes").splitlines()
    files = sorted(RECIPES.glob("*/*.yaml"), key=lambda path: path.stem)
    assert [line.split()[:3] for line in listed[:-1]] == [[path.stem, "lbgen", path.parent.name] for path in files]
    assert all(len(line.split()) > 5 for line in listed)
    for path in files:
        assert printed(capsys, "recipes", path.stem) == f"# {path}\n{path.read_text()}"
    assert "--recipe nope: no such file" in refused_here(capsys, "recipes", "nope")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("align --recipe independant", "{align}; did you mean independent?"),
        ("align --recipe ./own.yaml", "{align}"),
        ("plan --recipe fast-dmp", "{generate}; did you mean fast-dpm?"),
        ("quickstart --recipe microwrld", ", and lbgen quickstart has no recipes"),
        ("recipes independant", "{every}; did you mean independent?"),
    ],
)
def test_an_unknown_recipe_is_answered_with_those_of_the_verb(capsys, argv, expected):
    """Against the files in the verb's folder."""
    files = {folder: sorted(path.stem for path in RECIPES.glob(f"{folder}/*")) for folder in ("align", "generate")}
    lists = {**files, "every": sorted(path.stem for path in RECIPES.glob("*/*"))}
    known = {name: f", nor one of the built-in recipes ({', '.join(names)})" for name, names in lists.items()}
    shown = refused_here(capsys, *argv.split())
    assert shown == f"lbgen: --recipe {argv.split()[-1]}: no such file{expected.format(**known)}\n"


def test_a_recipe_is_found_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text("max_steps: 7\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    monkeypatch.chdir("/")
    assert resolve(AlignConfig, str(tmp_path / "b.yaml"), {}).max_steps == 7
    with pytest.raises(UserError, match="no such file"):
        resolve(AlignConfig, "a.yaml", {})


def test_a_file_that_is_no_text_is_shown_without_what_a_terminal_obeys(tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(b"steps: 3  # \xff\033[31m\n")
    lbgen.recipes(str(file))
    assert capsys.readouterr().out == f"# {file}\nsteps: 3  # \ufffd\\x1b[31m\n"
