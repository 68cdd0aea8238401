"""Categories that a model cannot tell apart, with the micro world's models, whose tokenizers know few words."""

import dataclasses
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from lbgen.alignment.config import AlignConfig
from lbgen.alignment.run import align
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.estimate import plan
from lbgen.generation.run import generate
from lbgen.generation.verify import verify
from lbgen.models.generator import load_generator
from lbgen.models.registry import SEMANTICS
from lbgen.models.semantics import first_equal, load_semantics
from lbgen.vocabulary.vocabulary import Vocabulary, load_vocabulary

UNKNOWN = {
    "unknown words": ("fish", "zebra", "unicorn", "walrus"),
    "Chinese": ("fish", "\u6591\u9a6c", "\u72ec\u89d2\u517d", "\u6d77\u8c61"),
}


@pytest.fixture
def config(tmp_path) -> GenerateConfig:
    return GenerateConfig(
        output=tmp_path / "data", vocabulary=str(tmp_path / "names.txt"), generator="microworld", scheduler="ddim",
        steps=1, images_per_category=1, batch_size=4, writers=1, screen_semantics="microworld",
    )  # fmt: skip


def write(config, *names: str) -> None:
    Path(config.vocabulary).write_text("\n".join(names))


def vocabulary(tmp_path, *names: str) -> Vocabulary:
    (tmp_path / "list.txt").write_text("\n".join(names))
    return load_vocabulary(str(tmp_path / "list.txt"), qualify=False)


@pytest.mark.parametrize("names", UNKNOWN.values(), ids=UNKNOWN)
def test_words_that_the_generator_does_not_know_are_refused(config, names):
    """Before anything is written, by plan too; the message names all of them."""
    write(config, *names)
    for run in (plan, generate):
        with pytest.raises(UserError, match="--no-qualify-names") as refused:
            run(config)
        assert str(refused.value).startswith(f"{config.vocabulary}, line 2: generator microworld reads ")
        assert all(name in str(refused.value) for name in names[1:]) and "fish" not in str(refused.value)
        assert not Path(config.output).exists()


def test_they_are_kept_on_request_and_the_dataset_goes_on(config, capsys):
    """With one line that names them; a repair keeps what is there, and growth may not add more of them."""
    write(config, "fish", "zebra", "unicorn")
    kept = dataclasses.replace(config, qualify_names=False)
    assert generate(kept).finished
    expected = 'names.txt, line 2: generator microworld reads "zebra" (zebra) and "unicorn" (unicorn) as one text'
    shown = capsys.readouterr().out
    assert shown.count("warning: ") == 1 and expected in shown
    (Path(config.output) / "index/train-00000.parquet").unlink()
    assert verify(config.output, repair=True).damaged == ()
    assert generate(dataclasses.replace(config, images_per_category=2)).finished
    write(config, "fish", "zebra", "unicorn", "walrus")
    with pytest.raises(UserError, match='"zebra" .* and "walrus" .walrus. as one text'):
        generate(dataclasses.replace(config, images_per_category=2))


def test_the_label_check_needs_texts_that_differ(config):
    """The generator here would know the words."""
    write(config, "fish", "boat")
    odd = dataclasses.replace(config, screen=("label",), screen_template="photo of zebra{name}")
    with pytest.raises(UserError, match='--screen-semantics microworld reads "fish" .fish. and "boat" .boat. as one'):
        generate(odd)
    assert generate(dataclasses.replace(odd, screen=("blank",))).finished


@pytest.mark.parametrize("template", ["prompt_template", "text_template", "discriminator_template"])
def test_align_refuses_them_too(tmp_path, template):
    """Whichever text it is that a model cannot tell apart."""
    (tmp_path / "names.txt").write_text("fish\nboat\n")
    config = AlignConfig(
        output=tmp_path / "run", vocabulary=str(tmp_path / "names.txt"), generator="microworld", semantics="microworld",
        logger="none", **{template: "zebra{name}"},
    )  # fmt: skip
    with pytest.raises(UserError, match='microworld reads "fish" .fish. and "boat" .boat. as one text'):
        align(config)
    assert not (tmp_path / "run").exists()


def test_confusions_of_a_space_are_those_of_its_features(tmp_path):
    """Against the features of transformers itself, one text at a time, compared pair by pair."""
    names = ["fish", "zebra", "walrus", "boat", "zebra fish", "walrus fish", "house"]
    categories = vocabulary(tmp_path, *names)
    model, tokenizer = (kind.from_pretrained(SEMANTICS["microworld"]) for kind in (AutoModel, AutoTokenizer))
    groups = defaultdict(list)
    with torch.no_grad():
        features = [model.get_text_features(**tokenizer(name, return_tensors="pt")).pooler_output[0] for name in names]
    for one, name in zip(features, names, strict=True):
        first = next(n for n, other in enumerate(features) if torch.allclose(one, other, atol=1e-5))
        groups[first].append(name)
    truth = [group for group in groups.values() if len(group) > 1]
    assert truth == [["zebra", "walrus"], ["zebra fish", "walrus fish"]]
    found = load_semantics("microworld").confusions(categories, "{name}")
    assert [[category.name for category in confusion.categories] for confusion in found] == truth


def test_known_words_are_not_confused():
    """Those of the micro world's own list."""
    categories = load_vocabulary("microworld")
    assert load_semantics("microworld").confusions(categories, "photo of {name}") == []
    assert load_generator("microworld").confusions(categories, "{name}") == []


def test_equal_features_of_other_tokens_are_found():
    """A weight that is zero makes two words one; half precision's rounding does not hide it."""
    rng = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(600, 8, generator=rng), dim=1)
    features[599], features[300] = features[1], torch.nn.functional.normalize(features[2] + 1e-4, dim=0)
    features[301] = torch.nn.functional.normalize(features[3] + 0.05, dim=0)
    expected = list(range(600))
    expected[599], expected[300] = 1, 2
    assert first_equal(features) == expected
