"""Balancing: targets, counted by brute force; then a whole run on the micro world, drawn in a hurry."""

import math
import re
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from folders import contents
from PIL import Image
from sklearn.metrics import adjusted_mutual_info_score
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from lbgen.datasets import index
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import Plan
from lbgen.generation.run import generate
from lbgen.generation.screening import balance
from lbgen.generation.screening.balance import ZeroShot, ensure_prompts_read, target_values
from lbgen.generation.targets import Target
from lbgen.generation.verify import verify
from lbgen.metrics.information import adjusted_information, bits, contingency_table, mutual_information
from lbgen.microworld import SEMANTICS
from lbgen.models.generator import Generator
from lbgen.models.semantics import load_semantics
from lbgen.vocabulary.attributes import Attribute, load_attributes
from lbgen.vocabulary.vocabulary import Category

SCENES = ("on grass", "on sea", "on desert", "on snow", "on brick", "on forest")


def attributes(*counts: int) -> tuple[Attribute, ...]:
    return tuple(Attribute(f"a{n}", "{value}", tuple(f"{n}.{v}" for v in range(c)), "") for n, c in enumerate(counts))


def targets(balanced: tuple[Attribute, ...], count: int, category: str = "cat", seed: int = 0) -> list[tuple[str, ...]]:
    return [target_values(balanced, (seed, "train", category), index) for index in range(count)]


# ---- targets ----


@pytest.mark.parametrize(
    "counts", [(2,), (5,), (2, 3), (3, 3), (4, 6), (6, 4), (2, 2, 2), (2, 4, 4), (4, 6, 3), (1, 3)]
)
def test_values_are_even_for_any_number_of_images(counts):
    """Counted: after n images no value leads another by more than one; all combinations come in turn."""
    period = math.prod(counts)
    made = targets(attributes(*counts), 2 * period + 1)
    for place, count in enumerate(counts):
        seen = Counter({f"{place}.{value}": 0 for value in range(count)})
        for values in made:
            seen[values[place]] += 1
            assert max(seen.values()) - min(seen.values()) <= 1
    assert (
        set(made[:period]) == set(made[period : 2 * period]) == set(product(*(a.values for a in attributes(*counts))))
    )


def test_categories_and_seeds_have_orders_of_their_own():
    """So the values that are left over when n / V is not whole are not the same ones everywhere."""
    (six,) = balanced = attributes(6)
    first = Counter(targets(balanced, 1, category=str(n))[0][0] for n in range(600))
    assert set(first) == set(six.values) and max(first.values()) < 150
    assert len({tuple(targets(balanced, 6, seed=seed)) for seed in range(20)}) > 15


def test_order_of_the_file_does_not_matter():
    (six,) = attributes(6)
    turned = replace(six, values=six.values[::-1])
    assert targets((six,), 6) == targets((turned,), 6)


def test_growth_and_other_categories_leave_targets_as_they_were():
    balanced, categories = attributes(4, 3), [Category(id, id, "") for id in "abcd"]

    def by_key(*asked: tuple[int, str], shard_size: int) -> dict[str, tuple[str, ...]]:
        wanted = [Target("train", n, tuple(c for c in categories if c.id in ids)) for n, ids in asked]
        plan = Plan(tuple(wanted), 5, shard_size, balanced)
        images = [image for shard in range(plan.shards("train")) for image in plan.shard("train", shard)]
        return {image.key: image.target_values for image in images}

    small, grown, whole = (
        by_key((5, "bd"), shard_size=3),
        by_key((5, "bd"), (13, "abcd"), shard_size=3),
        by_key((13, "abcd"), shard_size=7),
    )
    assert grown == whole and len(whole) == 52
    assert small.items() <= whole.items()


# ---- a run ----


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> GenerateConfig:
    """Two steps without guidance: some images are not what they were asked to be, a few not even at last."""
    return GenerateConfig(
        writers=1,
        output=tmp_path_factory.mktemp("balance") / "whole",
        vocabulary="microworld",
        generator="microworld",
        scheduler="ddim",
        steps=2,
        images_per_category=3,
        batch_size=6,
        shard_size=12,
        max_attempts=2,
        guidance_scale=1.0,
        seed=3,
        balance=("scene",),
        attributes=Path("microworld"),
        balance_template="{name} {value}",
        screen_semantics="microworld",
    )


@pytest.fixture(scope="module")
def drawn(config) -> tuple[Path, list[str]]:
    """The folder, and every prompt that the generator was given."""
    prompts = []
    with pytest.MonkeyPatch.context() as patch:
        encode = Generator.encode
        patch.setattr(Generator, "encode", lambda self, texts: prompts.extend(texts) or encode(self, texts))
        generate(config)
    return Path(config.output), prompts


@pytest.fixture(scope="module")
def rows(drawn) -> list[dict]:
    return index.read_index(drawn[0]).to_pylist()


def test_generator_is_asked_for_the_target(drawn, rows):
    assert set(drawn[1]) - {""} == {row["prompt"] for row in rows}
    for row in rows:
        assert row["prompt"] == f"{row['name']} {row['target'][0]}"
    for name in {row["name"] for row in rows}:
        assert len({row["target"][0] for row in rows if row["name"] == name}) == 3


def test_what_is_found_is_what_transformers_finds(drawn, rows):
    """Its own model, tokenizer and image processor, on the stored files."""
    model, tokenizer = CLIPModel.from_pretrained(SEMANTICS), AutoTokenizer.from_pretrained(SEMANTICS)
    texts = tokenizer([f"photo {scene}" for scene in SCENES], padding="max_length", max_length=12, return_tensors="pt")
    images = CLIPImageProcessor.from_pretrained(SEMANTICS)(
        [Image.open(drawn[0] / row["file"]) for row in rows], return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(input_ids=texts.input_ids, pixel_values=images.pixel_values).logits_per_image
    assert [row["found"] for row in rows] == [[SCENES[n]] for n in logits.argmax(dim=1)]


def test_an_image_that_shows_another_value_is_drawn_again(rows):
    for row in rows:
        as_asked = row["found"] == row["target"]
        assert row["rejections"] == ["balance"] * (row["attempt"] + (not as_asked))
        assert as_asked or row["attempt"] == 1
    assert {row["attempt"] for row in rows} == {0, 1} and any(row["found"] == row["target"] for row in rows)


def test_card_has_what_the_label_still_tells(drawn, rows):
    """Counted from the index; the association is scikit-learn's."""
    card = (drawn[0] / "README.md").read_text()
    label, found = [row["label"] for row in rows], [row["found"][0] for row in rows]
    association = max(0, adjusted_mutual_info_score(label, found))
    as_asked = np.mean([row["found"] == row["target"] for row in rows])
    assert 0.5 < as_asked < 1
    assert f"| scene | {association:.3f} | {as_asked:.1%} |" in card
    for scene in SCENES:
        asked = sum(row["target"] == [scene] for row in rows)
        assert f"| scene | {scene} | {asked} | {found.count(scene)} |" in card


@pytest.mark.usefixtures("warm_processes")
def test_dataset_is_the_same_with_other_workers_and_after_a_part_is_repaired(config, drawn, tmp_path):
    generate(replace(config, output=tmp_path / "two", workers=2))
    (tmp_path / "two/index/train-00001.parquet").unlink()
    assert verify(tmp_path / "two", repair=True).damaged == ()
    assert contents(tmp_path / "two") == contents(drawn[0])


def test_changed_attributes_are_refused_and_moved_ones_are_not(config, drawn, tmp_path):
    (scene,) = load_attributes(config.attributes)
    content = f"# moved\nscene: {{values: [{', '.join(scene.values)}], template: 'photo {{value}}'}}\n"
    (tmp_path / "moved.yaml").write_text(content + "other: {template: '{value}', values: [a, b]}\n")
    assert generate(replace(config, attributes=tmp_path / "moved.yaml")).finished
    (tmp_path / "changed.yaml").write_text(content.replace("on sea", "on snow grass"))
    with pytest.raises(UserError, match="made with other templates or values of scene; give --attributes the file"):
        generate(replace(config, attributes=tmp_path / "changed.yaml"))
    with pytest.raises(UserError, match="made with balance scene"):
        generate(replace(config, balance=(), attributes=None))


def test_several_attributes_stand_in_one_prompt(config, tmp_path):
    """Of a template with the category's name in it, too."""
    (tmp_path / "two.yaml").write_text(
        "scene: {template: '{name} {value}', values: [on snow, on sea]}\n"
        "colour: {template: '{value}', values: [red, blue]}"
    )
    two = {"attributes": tmp_path / "two.yaml", "balance": ("colour, scene",), "output": tmp_path / "two"}
    generate(replace(config, **two, images_per_category=4, max_attempts=1))
    rows = index.read_index(tmp_path / "two").to_pylist()
    fish = {tuple(row["target"]): row["prompt"] for row in rows if row["id"] == "fish"}
    values = product(("red", "blue"), ("on snow", "on sea"))
    assert fish == {(colour, scene): f"fish {colour}, {scene}" for colour, scene in values}
    assert "| colour | red | 24 |" in (tmp_path / "two/README.md").read_text()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"balance": ("scene,scene",)}, "--balance .*name each attribute once"),
        ({"balance": ("scene,",)}, "--balance .*name each attribute once"),
        ({"balance": (), "attributes": Path("microworld")}, "--attributes microworld: say which to balance"),
        ({"balance_template": "{name}"}, '--balance-template {name}: write "{name}" and "{value}"'),
        ({"balance": ("weather",)}, '--balance: no "weather" in microworld; choose of scene, or give --attributes'),
        (
            {"attributes": "on.yaml"},
            'would ask for "fish grass", without the "on" of .*on.yaml, scene, template; give --balance-template '
            '"{name} on {value}"',
        ),
        ({"attributes": "a.yaml", "balance_template": "a {name}  {value}"}, 'give .*"a {name} a {value}"'),
        (
            {"balance_template": "{name} on {value}, wide"},
            'would ask for "fish on on grass, wide", with the "on" of the value "on grass" twice; give '
            '--balance-template "{name} {value}, wide"$',
        ),
        (
            {"attributes": "in.yaml", "balance_template": "{name} In the {value}"},
            '"in the" of .*give .*"{name} {value}"$',
        ),
        (
            {"attributes": "mixed.yaml", "balance_template": "{name} on {value}"},
            "begin all values of .*mixed.yaml, sce",
        ),
        ({"balance_template": "{name} on a scene of {value} " + "and on grass " * 5}, "the text encoder reads"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(config, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    for name, text in (("on", "photo on {value}"), ("a", "photo of a {value} thing")):
        content = {"scene": {"template": text, "values": ["grass", "sea"]}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    for name, values in (("in", ["in the sea", "in the dark"]), ("mixed", ["grass", "on sea"])):
        content = {"scene": {"template": "photo {value}", "values": values}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    changes = {name: Path(value) if name == "attributes" else value for name, value in changes.items()}
    with pytest.raises(UserError, match=message):
        generate(replace(config, output=tmp_path / "made", **changes))
    assert not (tmp_path / "made/dataset.yaml").exists()


def test_templates_with_a_name_are_read_as_transformers_reads_them(tiny_clip_folder):
    """On a random-weight miniature, which every letter of a text matters to."""
    size = Attribute("size", "{value} {name}", ("big", "odd", "new"), "")
    light = Attribute("light", "in {value}", ("sun", "fog"), "")
    names, pixels = ["cat", "dog", "ant"] * 8, np.random.default_rng(2).integers(0, 256, (24, 16, 16, 3), np.uint8)
    model, tokenizer = CLIPModel.from_pretrained(tiny_clip_folder), AutoTokenizer.from_pretrained(tiny_clip_folder)
    seen = CLIPImageProcessor.from_pretrained(tiny_clip_folder)(list(pixels), return_tensors="pt")

    def best(row: int, texts: list[str]) -> int:
        tokens = tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt").input_ids
        with torch.no_grad():
            return model(input_ids=tokens, pixel_values=seen.pixel_values[row : row + 1]).logits_per_image.argmax()

    expected = [
        (size.values[best(n, [f"{v} {name}" for v in size.values])], light.values[best(n, ["in sun", "in fog"])])
        for n, name in enumerate(names)
    ]
    space = load_semantics(str(tiny_clip_folder))
    reader = ZeroShot((size, light), [Category(name, name, "") for name in names], space)
    features = space.embed_images(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    assert reader.detect(names, features) == expected
    assert len(set(expected)) > 3


def test_a_text_too_long_for_the_space_is_refused_at_the_start(tiny_clip_folder):
    size = Attribute("size", "{value} {name}", ("big", "odd"), "a.yaml, size")
    space = load_semantics(str(tiny_clip_folder))
    with pytest.raises(
        UserError, match='a.yaml, size: "big abcdefghijklm" is 18 tokens long, the text encoder reads 16'
    ):
        ZeroShot((size,), [Category("a", "abcdefghijklm", "")], space)


# ---- what is left of the association ----


@pytest.mark.parametrize("noise", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("count", [30, 400, 20_000])
def test_adjusted_information_is_that_of_scikit_learn(noise, count):
    rng = np.random.default_rng(count)
    label = rng.integers(0, 8, count)
    value = np.where(rng.random(count) < noise, rng.integers(0, 4, count), label % 4)
    ours = adjusted_information(contingency_table(label, value))
    assert ours == pytest.approx(max(0, adjusted_mutual_info_score(label, value)), abs=1e-7)


def test_even_values_are_no_association_even_where_they_cannot_all_come():
    """12 categories of 3 images and 6 values; the information that is not adjusted takes them for linked."""
    made = [[int(v[2:]) for (v,) in targets(attributes(6), 3, category=str(n))] for n in range(12)]
    table = contingency_table(np.arange(12).repeat(3), np.array(made).flatten())
    assert adjusted_information(table) == 0
    assert bits(mutual_information(table)) > 0.5


def test_adjusted_information_where_nothing_varies_is_zero():
    same, many = np.zeros(6, np.int64), np.arange(6)
    assert adjusted_information(contingency_table(same, same)) == 0
    assert adjusted_information(contingency_table(many, same)) == 0


def test_readers_know_the_columns(drawn):
    """The card's and Croissant's list of columns is the index's own."""
    croissant = (drawn[0] / "croissant.json").read_text()
    assert re.search(r'"image-index/target".*?"image-index/found"', croissant, re.DOTALL)


@pytest.mark.parametrize(
    ("template", "balance_template"),
    [
        ("photo {value}", "{name} {value}"),  # as in the micro world: the value is a phrase, "on grass"
        ("photo on {value}", "{name} on {value}"),
        ("a photo in {value}", "{name}, {value}"),
        ("{value} {name}", "{value} {name}"),
        ("photo {value}", "on {value}: {name}"),
    ],
)
def test_prompts_that_read_are_accepted(config, template, balance_template):
    attribute = Attribute("scene", template, ("grass", "sea"), "file")
    ensure_prompts_read(replace(config, balance_template=balance_template), [attribute], "fish")


def test_a_value_may_bring_the_word_that_the_attributes_template_has_too(config):
    """Otherwise each of the two templates would be refused with the other as its remedy."""
    attribute = Attribute("scene", "photo on {value}", ("on grass", "on sea"), "file")
    ensure_prompts_read(replace(config, balance_template="{name} {value}"), [attribute], "fish")


def test_a_dataset_that_an_earlier_version_began_with_such_prompts_goes_on(config, tmp_path, monkeypatch):
    (tmp_path / "on.yaml").write_text("scene: {template: 'photo on {value}', values: [grass, sea]}")
    made = replace(config, output=tmp_path / "made", attributes=tmp_path / "on.yaml", images_per_category=1)
    with monkeypatch.context() as earlier:
        earlier.setattr(balance, "ensure_prompts_read", lambda *_: None)
        generate(made)
    assert generate(replace(made, images_per_category=2)).images == 24
