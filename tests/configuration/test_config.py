"""Config dataclasses as flags, recipes and files."""

import argparse
import dataclasses
import shlex
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

import lbgen
from lbgen.alignment.config import AlignConfig
from lbgen.audit.config import AuditConfig
from lbgen.cli import VERBS
from lbgen.configuration import recipes as recipes_module
from lbgen.configuration.flags import add_arguments, field_help
from lbgen.configuration.ranges import Count, Range, Settings, require
from lbgen.configuration.recipes import built_in_recipes, is_required, recipe_path, resolve
from lbgen.configuration.saved import ensure_same, load, plain, save
from lbgen.configuration.values import convert
from lbgen.configuration.yaml_lines import read_yaml
from lbgen.errors import UserError
from lbgen.evaluation.transfer.config import TransferConfig
from lbgen.generation.config import RUNNING, GenerateConfig, VerifyConfig
from lbgen.microworld.config import ExportConfig
from lbgen.pretraining.config import PretrainConfig
from lbgen.quickstart.run import QuickstartConfig
from lbgen.reproduction.config import ReproduceConfig


@dataclass(frozen=True)
class Baking:
    output: Path
    """Where the bread goes."""
    minutes: int = 40
    """How long, 100% in the oven."""
    yeast: float = 1e-5
    """Kilograms
    of yeast."""
    lid: bool = True
    """Cover it."""
    flour: Literal["wheat", "rye", "off"] = "wheat"
    """Which flour."""
    toppings: tuple[str, ...] = ("salt", "no")
    """What goes on top."""
    rises: tuple[float, float] = (0.0, 2.5)
    """First and second rise, hours."""
    limit: int | None = None
    """At most so many."""
    note: str | None = None
    """A remark."""

    def __post_init__(self) -> None:
        require(self, "minutes", self.minutes >= 1, "give 1 or more")


def parsed(*argv: str) -> dict:
    """What argparse makes of the flags and of the positional argument, the output."""
    parser = argparse.ArgumentParser()
    add_arguments(parser, Baking)
    return vars(parser.parse_args(argv))


def refusal(call, *arguments, **options) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


def recipe(tmp_path: Path, text: str) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return str(path)


# ---- docstrings and flags ----


def test_docstrings_are_the_literals_after_the_fields():
    """Against the class above, read by eye."""
    helps = field_help(Baking)
    assert helps["minutes"].text == "How long, 100% in the oven."
    assert helps["yeast"].text == "Kilograms of yeast."


def test_docstrings_of_base_classes_are_kept_and_may_be_replaced():
    @dataclass(frozen=True)
    class Cake(Baking):
        minutes: int = 50
        """Longer than bread."""
        icing: bool = False
        """Ice it."""

    helps = field_help(Cake)
    assert helps["minutes"].text == "Longer than bread." and helps["icing"].text == "Ice it."
    assert helps["lid"].text == "Cover it."


def test_help_shows_text_default_and_a_literal_percent_sign():
    parser = argparse.ArgumentParser()
    add_arguments(parser, Baking)
    shown = " ".join(parser.format_help().split())
    assert "How long, 100% in the oven. (default: 40)" in shown
    assert "OUTPUT Where the bread goes." in shown and "--output" not in shown
    assert "What goes on top. (default: salt no)" in shown
    assert "--no-lid" in shown and "{wheat,rye,off}" in shown and "(default: none)" in shown


def test_only_given_flags_are_parsed():
    assert parsed("b", "--minutes", "5") == {"output": "b", "minutes": "5"}
    assert parsed("b", "--no-lid", "--toppings", "a", "b") == {"output": "b", "lid": False, "toppings": ["a", "b"]}


@pytest.mark.parametrize("config_class", [AlignConfig, GenerateConfig])
def test_every_field_of_the_stages_has_a_docstring_a_flag_and_a_default_of_its_type(config_class):
    """A default that its own type refuses would only be seen when someone passes it."""
    parser = argparse.ArgumentParser()
    add_arguments(parser, config_class)
    fields = {field.name: getattr(config_class(), field.name) for field in dataclasses.fields(config_class)}
    assert resolve(config_class, None, fields) == config_class()


# ---- groups, ranges, places ----


@dataclass(frozen=True)
class Oven(Settings):
    """The oven."""

    degrees: Annotated[int, Range(lambda n: n <= 300, "give 300 or less")] = 220
    """Temperature."""
    trays: Count | None = None
    """Trays."""


@dataclass(frozen=True)
class Dough(Settings):
    """Dough.

    Comes first in the file, and second in the help.
    """

    loaves: Count = 2
    """Loaves."""


@dataclass(frozen=True)
class Bakery(Oven, Dough):
    """All settings."""

    MOST_USED = ("trays",)
    DELETED = {"wood": "oak"}
    degrees: int = 250
    """Hotter than at home."""
    name: str = "corner"
    """On the sign."""


def test_help_is_grouped_by_the_classes_that_declare_the_fields():
    """Against the classes above, read by eye."""
    parser = argparse.ArgumentParser()
    add_arguments(parser, Bakery)
    groups = {group.title: [action.dest for action in group._group_actions] for group in parser._action_groups[2:]}
    assert groups == {"most used": ["trays"], "dough": ["loaves"], "the oven": ["degrees"], "all settings": ["name"]}
    assert list(groups)[0] == "most used"
    assert "Hotter than at home. (default: 250)" in " ".join(parser.format_help().split())


def test_a_range_is_part_of_the_type_and_none_is_in_every_optional_one():
    assert refusal(Oven, degrees=301) == "--degrees 301: give 300 or less"
    assert refusal(resolve, Oven, None, {"trays": "0"}) == "--trays 0: give 1 or more, 1,000,000,000 at most"
    assert refusal(Bakery, loaves=0) == "--loaves 0: give 1 or more, 1,000,000,000 at most"
    assert Oven(degrees=300, trays=None).trays is None


def test_a_whole_number_of_any_verb_has_a_largest_value():
    """Of the fields that are numbers by their annotation, read here; --seed ends at 2**63."""
    verbs = [each for verb in VERBS.values() for each in (verb, *verb.forms.values())]
    for config_class in {getattr(lbgen, verb.config_class) for verb in verbs}:
        given = {field.name: "x" for field in dataclasses.fields(config_class) if is_required(field)}
        kinds = typing.get_type_hints(config_class)
        for name in [name for name, kind in kinds.items() if kind in (int, int | None)]:
            flag = f"--{name.replace('_', '-')} "
            assert refusal(resolve, config_class, None, {**given, name: str(10**20)}).startswith(flag)


def test_a_file_has_the_fields_of_the_last_base_first():
    assert list(plain(Bakery())) == ["loaves", "degrees", "trays", "name"]


EARLIER = Path(__file__).parents[1] / "earlier"


def test_files_have_the_fields_of_the_version_before_in_the_same_order():
    """Against the files of the version before, without the fields that are deleted or that say how a run was run, and
    without those that were added since."""
    run, dataset = read_yaml(EARLIER / "run/config.yaml"), read_yaml(EARLIER / "half/dataset.yaml")["config"]
    now = [name for name in plain(AlignConfig()) if name not in AlignConfig.ADDED]
    assert now == [name for name in run if name not in AlignConfig.DELETED]
    left_out = {*RUNNING, *GenerateConfig.ADDED}
    assert [name for name in plain(GenerateConfig()) if name not in left_out] == list(dataset)


@pytest.mark.parametrize("config_class", [AlignConfig, GenerateConfig, AuditConfig, QuickstartConfig])
def test_output_is_text_in_every_stage_and_may_be_given_as_a_path(config_class):
    given = [config_class(output=output) for output in (Path("runs/a"), "runs/a", "file://runs/a")]
    assert {config.output for config in given} == {"runs/a"} and given[0].folder == Path("runs/a")
    assert typing.get_type_hints(config_class)["output"] is str
    assert refusal(config_class, output="") == '--output "": name a folder'


def test_a_deleted_field_is_refused_in_recipes_and_records(tmp_path):
    path = recipe(tmp_path, "wood: oak\n")
    gone = "this version of lbgen no longer has this field"
    assert refusal(resolve, Bakery, path, {}) == f"{path}, line 1: wood: {gone}; remove it"
    assert refusal(load, Bakery, Path(path)) == f"{path}, wood: {gone}; remove it"


def test_a_run_of_an_earlier_version_continues_if_a_deleted_field_had_its_default(tmp_path):
    path = tmp_path / "config.yaml"
    save(Bakery(), path)
    text = path.read_text()
    path.write_text(text + "wood: oak\n")
    ensure_same(Bakery(), path)
    path.write_text(text + "wood: elm\n")
    message = refusal(ensure_same, Bakery(), path)
    assert message.startswith(
        f"{tmp_path} was made with wood elm, but this version of lbgen no longer has this field; "
    )
    assert message.endswith("choose another --output, or continue there with the version that began it")


def test_settings_of_another_verb_are_called_that(tmp_path):
    save(AlignConfig(), tmp_path / "config.yaml")
    message = refusal(ensure_same, Bakery(), tmp_path / "config.yaml")
    assert message.startswith(f"{tmp_path} was made by another verb or version of lbgen, with no field ")


def test_the_deleted_fields_of_align_had_these_defaults():
    """Against the run of the version before, which was begun without flags for them."""
    run = read_yaml(EARLIER / "run/config.yaml")
    assert {name: run[name] for name in AlignConfig.DELETED} == AlignConfig.DELETED


# ---- resolving ----


def test_defaults_then_recipe_then_flags(tmp_path):
    path = recipe(tmp_path, "minutes: 10\nyeast: 1e-3\nlimit: 7\n")
    made = resolve(Baking, path, parsed("b", "--minutes", "20"))
    assert made == Baking(output=Path("b"), minutes=20, yeast=1e-3, limit=7)


def test_flags_are_converted_to_their_types():
    given_flags = parsed(
        *(
            "b",
            "--yeast",
            "1e-4",
            "--flour",
            "off",
            "--rises",
            "1",
            "2",
            "--limit",
            "none",
            "--note",
            "1e-5",
        )
    )
    assert resolve(Baking, None, given_flags) == Baking(
        output=Path("b"), yeast=1e-4, flour="off", rises=(1.0, 2.0), limit=None, note="1e-5"
    )


def test_numbers_without_a_dot_are_numbers_and_off_and_no_are_text(tmp_path):
    """PyYAML's own reading (YAML 1.1) is the other way round, as the first line shows."""
    text = "output: no\nyeast: 1e-5\nflour: off\ntoppings: [yes, on]\nlid: false\nnote: null\n"
    assert yaml.safe_load(text)["flour"] is False and yaml.safe_load(text)["yeast"] == "1e-5"
    assert resolve(Baking, recipe(tmp_path, text), {}) == Baking(
        output=Path("no"), yeast=1e-5, flour="off", toppings=("yes", "on"), lid=False
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("minuets: 3", "minuets: no such field; did you mean minutes?"),
        ("xyzzy: 3", "xyzzy: no such field"),
        ("3: 3", "3: no such field"),
        ("minutes: ten", 'minutes: "ten" is not a whole number'),
        ("minutes: 1.5", "minutes: 1.5 is not a whole number"),
        ("minutes: true", "minutes: true is not a whole number"),
        ("minutes:", "minutes: none is not a whole number"),
        ("minutes: [1, 2]", "minutes: 1 2 is not a whole number"),
        ("minutes: 0", "minutes 0: give 1 or more"),
        ("yeast: true", "yeast: true is not a finite number"),
        ("yeast: .nan", 'yeast: ".nan" is not a finite number'),
        ("yeast: inf", 'yeast: "inf" is not a finite number'),
        ("lid: 1", "lid: 1 is not true or false"),
        ("lid: yes", 'lid: "yes" is not true or false'),
        ("flour: oats", 'flour: "oats" is not one of wheat, rye, off'),
        ("toppings: salt", 'toppings: "salt" is not a list of values'),
        ("toppings: [1]", "toppings: 1 is not text"),
        ("rises: [1, 2, 3]", "rises: 1 2 3 is not a list of 2 values"),
        ("note: 3", "note: 3 is not text (quote it)"),
        ("output: ''", 'output: "" is not a path'),
        ("minutes: !!python/object:os.system x", "line 1: not valid YAML"),
        ("a: 1\nb: [", "not valid YAML"),
        ("- 1\n- 2", "expected lines of the form `field: value`"),
    ],
)
def test_a_wrong_recipe_is_refused_by_file_field_and_remedy(tmp_path, text, expected):
    path = recipe(tmp_path, text)
    message = refusal(resolve, Baking, path, {"output": "b"})
    assert expected in message and message.startswith(path)


def test_a_recipe_that_is_not_text_or_not_there_is_refused(tmp_path):
    (tmp_path / "bad.yaml").write_bytes(b"minutes: \xff")
    assert "UTF-8" in refusal(resolve, Baking, str(tmp_path / "bad.yaml"), {})
    message = refusal(resolve, Baking, str(tmp_path / "missing.yaml"), {})
    assert "no such file" in message and "paper" in message
    assert "no regular file" in refusal(resolve, Baking, str(tmp_path), {})
    assert "no such file" in refusal(resolve, Baking, "x" * 300, {})  # more than a file system's name may have


def test_what_was_read_may_be_changed_and_is_read_again_as_it_stands(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("size: [32, 32]\nscreen: &names [label]\nagain: *names\n")
    read = read_yaml(path)
    read["size"].append(64)
    read["screen"].clear()
    assert read_yaml(path) == {"size": [32, 32], "screen": ["label"], "again": ["label"]}


def test_an_empty_recipe_changes_nothing(tmp_path):
    assert resolve(Baking, recipe(tmp_path, "# nothing\n"), {"output": "b"}) == Baking(output=Path("b"))


def test_a_field_without_a_default_must_be_given():
    assert refusal(resolve, Baking, None, {}) == "--output is missing; it has no default"


def test_wrong_flags_are_refused_by_flag():
    assert refusal(resolve, Baking, None, {"minutes": "x"}) == '--minutes: "x" is not a whole number'
    assert "did you mean minutes" in refusal(resolve, Baking, None, {"minuets": 3})


@pytest.mark.parametrize(
    ("config", "flags", "expected"),
    [
        (GenerateConfig, {"stored_size": (1, 70_000), "image_format": "jpeg"}, "--stored-size 1 70000: give two num"),
        (GenerateConfig, {"size": (100_000, 100_000)}, "--size 100000 100000: give two numbers from 1 to 8192"),
        (AlignConfig, {"rank": 10**6}, "--rank 1000000: give 1 to 4096"),
        (AlignConfig, {"learning_rate": 1e38}, "--learning-rate 1e+38: give a number above 0, 1e6 at most"),
    ],
)
def test_extreme_values_that_once_ran_are_refused(config, flags, expected):
    with pytest.raises(UserError) as refused:
        config(vocabulary="microworld", **flags)
    assert str(refused.value).startswith(expected)


@pytest.mark.parametrize("name", built_in_recipes())
def test_built_in_recipes_are_of_the_verb_that_their_name_says(name):
    others = dict.fromkeys(("resnet50", "vit-s", "micro", "micro-vit"), PretrainConfig)
    others |= dict.fromkeys(("micro-detection", "micro-segmentation"), TransferConfig)
    others |= {"reproduction": ReproduceConfig}
    config = GenerateConfig if name.startswith(("fast-", "diverse-")) else others.get(name, AlignConfig)
    assert (resolve(config, name, {}) == config()) == (name == "reproduction")  # which writes the defaults down
    assert recipe_path(name).name == f"{name}.yaml"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_finite_float_survives_its_text(number):
    assert convert(str(number), float) == number


# ---- files ----

bakings = st.builds(
    Baking,
    output=st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1).map(Path),
    minutes=st.integers(min_value=1),
    yeast=st.floats(allow_nan=False, allow_infinity=False),
    lid=st.booleans(),
    flour=st.sampled_from(["wheat", "rye", "off"]),
    toppings=st.lists(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"))).map(tuple),
    rises=st.tuples(st.floats(0, 9), st.floats(0, 9)),
    limit=st.none() | st.integers(),
    note=st.none()
    | st.sampled_from(["1e-5", "no", "null", "0x1f", "1_000", "12:30:00", "2001-01-01", "~", "", "a: b"]),
)


@settings(deadline=None)  # it waits for the disk
@given(made=bakings)
@example(made=Baking(output=Path("\x85\u2028")))
def test_a_saved_config_is_read_back_equal(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "config.yaml"
    save(made, path)
    assert load(Baking, path) == made


def test_a_saved_config_is_plain_yaml_for_any_reader(tmp_path):
    """Read by PyYAML, which knows nothing of ours."""
    save(Baking(output=Path("runs/a"), note="1e-5"), tmp_path / "new" / "config.yaml")
    content = yaml.safe_load((tmp_path / "new" / "config.yaml").read_text())
    assert content == {
        "output": "runs/a",
        "minutes": 40,
        "yeast": 1e-5,
        "lid": True,
        "flour": "wheat",
        "toppings": ["salt", "no"],
        "rises": [0.0, 2.5],
        "limit": None,
        "note": "1e-5",
    }


def test_ensure_same_names_the_field_that_differs(tmp_path):
    path = tmp_path / "config.yaml"
    then = Baking(output=Path("a"), yeast=2.0)
    save(then, path)
    ensure_same(then, path)
    ensure_same(dataclasses.replace(then, output=Path("b")), path)
    message = refusal(ensure_same, dataclasses.replace(then, yeast=3.0), path)
    assert message == (
        f"{tmp_path} was made with yeast 2.0, this run asks for 3.0; choose another --output or give --yeast 2.0"
    )
    message = refusal(ensure_same, dataclasses.replace(then, yeast=3.0), path, remedy="restore it")
    assert message.endswith("; choose another --output or restore it")
    ensure_same(dataclasses.replace(then, yeast=3.0), path, ignore=("output", "yeast"))


@pytest.mark.parametrize(
    "field, value",
    [("lid", True), ("lid", False), ("limit", None), ("toppings", ("sea salt", "no")), ("rises", (1.0, 2.5))],
)
def test_the_remedy_of_ensure_same_is_a_flag_that_works(tmp_path, field, value):
    """Given to argparse as a shell would give it, the flag brings back the earlier value."""
    path = tmp_path / "config.yaml"
    now = Baking(output=Path("a"), lid=value is False, limit=7, rises=(0.0, 0.0), toppings=())
    then = dataclasses.replace(now, **{field: value})
    save(then, path)
    _, words = refusal(ensure_same, now, path).split("choose another --output or give ")
    parser = argparse.ArgumentParser()
    add_arguments(parser, Baking)
    given = vars(parser.parse_args(["a", *shlex.split(words)]))
    assert getattr(resolve(Baking, None, given), field) == value
    assert list(given) == ["output", field]


def test_an_empty_list_is_had_by_leaving_its_flag_out(tmp_path):
    path = tmp_path / "config.yaml"
    save(GenerateConfig(), path)
    message = refusal(ensure_same, GenerateConfig(screen=("label",)), path)
    assert message.endswith(
        "made with screen empty, this run asks for label; choose another --output or leave out --screen"
    )


def test_an_operand_is_named_without_a_flag(tmp_path):
    """`lbgen bias` has no --backbones."""
    path = tmp_path / "config.yaml"
    save(lbgen.BiasConfig(backbones=("runs/a", "b c"), data="data"), path)
    message = refusal(ensure_same, lbgen.BiasConfig(backbones=("runs/b",), data="data"), path)
    assert message.endswith("this run asks for runs/b; choose another --output or give runs/a 'b c'")


def test_ensure_same_refuses_the_config_of_another_version(tmp_path):
    path = tmp_path / "config.yaml"
    made = Baking(output=Path("a"))
    save(made, path)
    path.write_text(path.read_text() + "sugar: 3\n")
    assert "the field sugar" in refusal(ensure_same, made, path)
    path.write_text("output: a\n")
    assert "no field minutes" in refusal(ensure_same, made, path)


def test_a_field_that_was_added_has_in_an_earlier_folder_the_value_of_before(tmp_path):
    """Not its default: a run with the new default is not the run that was begun."""

    @dataclasses.dataclass(frozen=True)
    class Later(Baking):
        steam: int = 2
        ADDED = {"steam": 0}

    made = Baking(output=Path("a"))
    path = tmp_path / "config.yaml"
    save(made, path)
    later = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    ensure_same(Later(**later, steam=0), path)
    assert "was made with steam 0, this run asks for 2" in refusal(ensure_same, Later(**later), path)


def test_load_names_what_is_missing(tmp_path):
    (tmp_path / "config.yaml").write_text("minutes: 3\n")
    assert refusal(load, Baking, tmp_path / "config.yaml").endswith("config.yaml: output is missing")


def test_recipes_are_package_data():
    assert set(built_in_recipes()) >= {"paper", "released-code"}
    assert recipe_path("paper").is_relative_to(Path(recipes_module.__file__).parent)


# ---- the home folder ----

PATHS = {
    AlignConfig: ("output", "vocabulary", "generator", "semantics"),
    GenerateConfig: ("output", "vocabulary", "generator", "adapter", "screen_semantics"),
    VerifyConfig: ("directory", "generator", "adapter", "attributes", "screen_semantics"),
    AuditConfig: ("output", "semantics", "attributes", "features"),
    QuickstartConfig: ("output",),
    ReproduceConfig: ("output", "page"),
    ExportConfig: ("directory",),
}
"""Every field that may name a file or folder of this machine, but for those that need others beside them."""


@pytest.mark.parametrize(("config_class", "name"), [(kind, name) for kind, names in PATHS.items() for name in names])
def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path, config_class, name):
    """A shell leaves it as it is in --output=~/x, and nothing replaces it in YAML and Python."""
    monkeypatch.setenv("HOME", str(tmp_path))
    fields = {field.name for field in dataclasses.fields(config_class)}
    given = {key: value for key, value in {"model": "microworld", "directory": "x"}.items() if key in fields}
    for text, place in (("~/x", tmp_path / "x"), ("~", tmp_path), ("a/~", Path("a/~"))):
        assert str(getattr(resolve(config_class, None, {**given, name: text}), name)) == str(place)
    with pytest.raises(UserError, match=f"^--{name.replace('_', '-')} ~nobody.here/x: no such user; write ./~nobody"):
        resolve(config_class, None, {**given, name: "~nobody.here/x"})


def test_a_tilde_in_a_recipe_and_in_its_path_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("output: ~/set\nprompt_template: ~/{name}\n")
    config = resolve(GenerateConfig, "~/mine.yaml", {})
    assert config.output == str(tmp_path / "set") and config.prompt_template == "~/{name}"
