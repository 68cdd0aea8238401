"""Where each family attends to its prompt, on its miniature: the name's tokens, and which keys are whose."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from miniatures import WRITERS

from lbgen.datasets import index
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.run import generate
from lbgen.generation.verify import verify
from lbgen.models.checkpoints.suited import suited_settings
from lbgen.models.families.family import Conditioning
from lbgen.models.generator import Generator, load_generator
from lbgen.models.localization import masks
from lbgen.models.localization.recorder import Recorder
from lbgen.models.sampling import render_images

JOINT, MASKED = ("sd3", "flux", "flux-2-klein", "z-image"), ("pixart-sigma", "sana")
"""Families with joint attention, and those whose prompts are masked beyond their end."""
PROMPTS, SPANS = ["a cat", "the dog"], [[(2, 5)], [(4, 7)]]
KEYS = [("x", 0, 0), ("x", 1, 0)]


@pytest.fixture(scope="module", params=WRITERS)
def generator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    folder = WRITERS[request.param](tmp_path_factory.mktemp(request.param))
    return load_generator(str(folder))


class Keeping(Recorder):
    """Keeps what each layer was given."""

    def _record(self, query: Any, key: Any, value: Any, attn_mask: Any = None, *_: Any, **options: Any) -> None:
        self.__dict__.setdefault("seen", []).append((query[-2:], key[-2:]))
        super()._record(query, key, value, attn_mask, **options)


def recorder_of(generator: Generator, tokens: list | None = None) -> Keeping:
    family: Any = generator.family
    tokens = tokens or [family.tokens_at(prompt, spans) for prompt, spans in zip(PROMPTS, SPANS, strict=True)]
    return Keeping(family.text_attention, tokens, generator.latent_shape(32, 32)[1:])


def test_attention_that_torch_did_not_compute_is_a_line(generator: Generator) -> None:
    """As with another backend of diffusers."""
    with pytest.raises(UserError, match="--localize: the attention was not computed by torch"):
        recorder_of(generator).maps()


@torch.no_grad()
def test_images_do_not_change_and_maps_are_shares(generator: Generator) -> None:
    plain = render_images(generator, KEYS, PROMPTS, seed=0, steps=2)
    recorder = recorder_of(generator)
    with recorder.attached(generator):
        assert torch.equal(render_images(generator, KEYS, PROMPTS, seed=0, steps=2), plain)
    maps, paid = recorder.maps(), recorder.paid()
    assert maps.shape == paid.shape == (2, *generator.latent_shape(32, 32)[1:])
    assert maps.isfinite().all() and maps.min() >= 0 and (maps.std((1, 2)) > 0).all()
    assert paid.max() <= 1 and torch.equal(maps, paid) == (not generator.guidance.is_on)


def test_the_prompt_is_found_among_the_words_of_a_chat_template(generator: Generator) -> None:
    """A category may have the name of a word of the template, before the prompt or after it."""
    places: Any = generator.family.tokens_at  # type: ignore[attr-defined]
    first = {name: places(name, [(0, len(name))])[0] for name in ("user", "assistant", "dog")}
    assert len(set(first.values())) == 1, first


def test_tokens_are_those_of_the_name(generator: Generator) -> None:
    """By the letters that the tokenizers say they stand for; CLIP's further ones follow the text."""
    family: Any = generator.family
    tokenizers = [
        getattr(family.pipeline, name) for name in ("tokenizer_2", "tokenizer") if hasattr(family.pipeline, name)
    ]
    ids = family.token_ids("a cat")[-1]
    tokenizer = getattr(family.pipeline, "tokenizer_3", None) or tokenizers[0]
    before = family.pipeline.tokenizer_max_length if hasattr(family.pipeline, "tokenizer_3") else 0
    places = [place - before for place in family.tokens_at("a cat", [(2, 5)])]
    text = tokenizer.decode([ids[place] for place in places if 0 <= place < len(ids)])
    assert "".join(text.split()).replace("<|endoftext|>", "") == "cat", text


@pytest.mark.parametrize("generator", JOINT, indirect=True)
@torch.no_grad()
def test_keys_of_the_prompt_are_those_that_depend_on_it(generator: Generator) -> None:
    """In the first layer of joint attention the keys of the image do not depend on the text yet."""
    family: Any = generator.family
    latents = torch.randn(2, *generator.latent_shape(32, 32), generator=torch.Generator().manual_seed(0))
    schedule, conditioning, found = generator.timesteps(2), generator.encode(PROMPTS), []
    other = {name: each + (name == "text") for name, each in conditioning.tensors.items()}
    for given in (Conditioning(conditioning.tensors), Conditioning(other)):
        recorder = recorder_of(generator)
        with recorder.attached(generator):
            family.predict(family.network, latents, schedule.timesteps[0], given)
        found.append(recorder.seen[0])
    (query, key), (other_query, other_key) = found
    places, words, shape = recorder._slices(query.shape[2], key.shape[2])
    assert torch.equal(query[:, :, places], other_query[:, :, places])
    assert query[:, :, places].shape[2] == shape[0] * shape[1]
    changed = (key != other_key).any(dim=-1).any(dim=1)  # (2, keys)
    lengths = conditioning.tensors.get("tokens", torch.full((2,), conditioning.tensors["text"].shape[1])).tolist()
    for row, length in enumerate(lengths):
        assert changed[row, words][:length].all() and changed[row].sum() == changed[row, words].sum()


@pytest.mark.parametrize("generator", MASKED, indirect=True)
@torch.no_grad()
def test_nothing_attends_beyond_a_masked_prompt(generator: Generator) -> None:
    assert "mask" in generator.encode(PROMPTS).tensors
    recorder = recorder_of(generator, [[-1], [-1]])
    with recorder.attached(generator):
        render_images(generator, KEYS, PROMPTS, seed=0, steps=1)
    assert not recorder.maps().any()


def test_a_dataset_of_each_family_has_masks(
    generator: Generator, config: GenerateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masks, "LEAST_CONTRAST", 0.0)
    made = replace(
        config, **suited_settings(generator.name), generator=generator.name, output=str(tmp_path / "made"),
        localize=True, images_per_category=1, prompt_template="a {name}",
    )  # fmt: skip
    generate(made)
    rows = index.read_index(made.output).to_pylist()
    assert len(rows) == 3 and all(row["box"] for row in rows)
    assert not verify(made.output).damaged
