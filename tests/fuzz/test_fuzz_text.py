"""What a user writes, changed at random (recipes, attributes, vocabularies, flags): read, or refused in one line."""

import random
from dataclasses import fields

from hostile import NUMBERS, TEXTS, changed_json, damaged, fuzz

import lbgen
from lbgen.alignment.config import AlignConfig
from lbgen.cli import VERBS
from lbgen.configuration.recipes import is_required, resolve
from lbgen.generation.config import GenerateConfig
from lbgen.vocabulary.attributes import load_attributes
from lbgen.vocabulary.vocabulary import load_vocabulary

RECIPES = [
    (AlignConfig, b'{"generator": "microworld", "prompt_template": "{name}", "size": [32, 32], "learning_rate": 1e-3, '
                  b'"max_steps": 3, "qualify_names": true, "differentiate_last": null, "lora_targets": ["to_q"]}'),
    (GenerateConfig, b'{"generator": "microworld", "steps": 4, "screen": ["label"], "guidance_interval": [0.1, 0.9], '
                     b'"balance": ["scene"], "unsafe": "reject", "batch_size": null, "stored_size": [8, 8]}'),
]  # fmt: skip
ATTRIBUTES = b"""
scene: {template: "a {name} in {value}", values: [a desert, "a forest"]}
light:
  template: a photo in {value}
  values:
  - daylight
  - "1.5"
"""
VOCABULARIES = {
    "ids.txt": b"n01440764 tench\nn02 gold fish\nn03\tgreat white shark\n",
    "names.txt": "polar bear\n# a comment\n\nred fox\n猫\nhouse (building)\n".encode(),
    "names.csv": b'id,name,note\nn1,"tench, a fish",x\nn2,gold fish,\n',
    "names.json": b'["tench", "gold fish", "shark"]',
    "pairs.json": b'{"n1": "tench", "n2": "gold fish"}',
    "objects.json": b'[{"id": "n1", "name": "tench"}, {"id": "n2", "name": "gold fish"}]',
}


def test_recipes(tmp_path):
    path = tmp_path / "recipe.yaml"

    def use(rng: random.Random) -> None:
        config_class, content = rng.choice(RECIPES)
        path.write_bytes(changed_json(content, rng))
        resolve(config_class, str(path), {"output": "x", "vocabulary": "x"})

    fuzz(use)


def test_attributes(tmp_path):
    path = tmp_path / "attributes.yaml"

    def use(rng: random.Random) -> None:
        path.write_bytes(damaged(ATTRIBUTES, rng))
        for attribute in load_attributes(path):
            attribute.texts("red fox")

    fuzz(use)


def test_vocabularies(tmp_path):
    def use(rng: random.Random) -> None:
        name = rng.choice(sorted(VOCABULARIES))
        path = tmp_path / name
        path.write_bytes((changed_json if name.endswith(".json") else damaged)(VOCABULARIES[name], rng))
        load_vocabulary(str(path), rng.random() < 0.5)

    fuzz(use)


def test_flags():
    """Of all verbs, each with one to three flags that have extreme values."""
    verbs = [each for verb in VERBS.values() for each in (verb, *verb.forms.values())]
    classes = [getattr(lbgen, name) for name in sorted({verb.config_class for verb in verbs})]

    def use(rng: random.Random) -> None:
        config_class = rng.choice(classes)
        given: dict = {field.name: "x" for field in fields(config_class) if is_required(field)}
        for _ in range(rng.randint(1, 3)):
            values = [str(rng.choice([*NUMBERS, *TEXTS])) for _ in range(rng.choice([1, 1, 2, 3]))]
            name = rng.choice(sorted(config_class.__dataclass_fields__))
            given[name] = values[0] if len(values) == 1 else values
        resolve(config_class, None, given)

    fuzz(use)
