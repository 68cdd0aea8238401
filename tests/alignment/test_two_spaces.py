"""An alignment in two language spaces at once, against each space alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from alignment_runs import ADAPTER, TERM, lines, state_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from lbgen.alignment import loop, run
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.losses import discriminator_loss
from lbgen.alignment.objective import term_values
from lbgen.configuration.recipes import resolve
from lbgen.configuration.saved import load, save
from lbgen.configuration.yaml_lines import read_yaml
from lbgen.errors import UserError
from lbgen.models.quality import load_quality
from lbgen.models.semantics import load_semantics
from lbgen.models.spaces.joint import JointSpace


@pytest.fixture
def spaces(tiny_clip_folder: Path, tiny_siglip2_folder: Path) -> tuple[str, str]:
    """12 and 16 dimensions, logit scales and preprocessing of their own."""
    return str(tiny_clip_folder), str(tiny_siglip2_folder)


@pytest.mark.parametrize("normalize_features", [True, False])
def test_every_term_is_the_mean_of_the_spaces_terms(spaces, fresh, normalize_features: bool) -> None:
    """Written out with each space loaded alone: features, texts, discriminator, antonym quality."""
    state = state_of(fresh(semantics=spaces, normalize_features=normalize_features))
    batch = loop.sample_batch(state, 0, differentiate=False)
    names = [state.vocabulary[index].name for index in batch.category_indices.tolist()]
    individual, entire, quality, discriminator = [], [], [], []
    for name, judge in zip(spaces, state.discriminator.discriminators, strict=True):
        space = load_semantics(name)
        texts = space.embed_texts([f"photo of {name}" for name in names])
        raw = space.embed_images(batch.images, normalize=False)
        individual.append(1 - F.cosine_similarity(raw, texts).mean())
        quality.append(1 - load_quality("antonyms", space).score(batch.images).mean() / 5)

        def logits(features: Tensor, judge=judge) -> Tensor:
            return judge(F.normalize(features, dim=-1) if normalize_features else features)

        real = space.embed_texts([f"photo of {name}" for name in names], normalize=False)
        entire.append(F.softplus(-logits(raw)).mean())
        discriminator.append(F.softplus(-logits(real)).mean() + F.softplus(logits(raw)).mean())
    values = term_values(state.terms, batch)
    expected = {"individual": individual, "entire": entire, "quality": quality}
    for name, of_spaces in expected.items():
        torch.testing.assert_close(values[name], torch.stack(of_spaces).mean(), rtol=1e-5, atol=1e-5)

    joint = state.real_features[batch.category_indices]
    loss = discriminator_loss(state.discriminator(joint), state.discriminator(batch.discriminator_features))
    torch.testing.assert_close(loss, torch.stack(discriminator).mean(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_cosine_of_the_joint_space_is_the_mean_of_the_cosines(spaces) -> None:
    parts, images, texts = [load_semantics(name) for name in spaces], torch.rand(3, 3, 20, 20), ["cup", "a", "fish"]
    joint = JointSpace(parts)
    seen, raw = joint.embed_images(images), joint.embed_images(images, normalize=False)
    cosines = [part.embed_images(images) @ part.embed_texts(texts).T for part in parts]
    torch.testing.assert_close(seen @ joint.embed_texts(texts).T, (cosines[0] + cosines[1]) / 2)
    torch.testing.assert_close(joint.unit_norm(raw), seen)
    for part, features in zip(parts, joint.split(raw), strict=True):
        torch.testing.assert_close(features, part.embed_images(images, normalize=False))


def test_a_run_in_two_spaces_resumes_to_the_same_bits(spaces, fresh, tmp_path: Path) -> None:
    """All terms, the independence term too, reach the adapter; one run is whole, one is stopped after one update."""
    config = fresh(semantics=spaces, output=tmp_path / "whole", **TERM)
    run.align(config)
    norms = lines(config.folder / "metrics.jsonl")[0]["gradient_norms"]
    assert all(norms[name] > 0 for name in ("entire", "individual", "quality", "independence"))
    parted = replace(config, output=tmp_path / "parted")
    run.align(replace(parted, max_steps=1))
    run.align(parted)
    assert (config.folder / ADAPTER).read_bytes() == (parted.folder / ADAPTER).read_bytes()
    assert read_yaml(config.folder / "config.yaml")["semantics"] == list(spaces)


def test_a_run_is_not_continued_with_other_spaces(spaces, fresh, tiny_siglip2_folder: Path, tmp_path: Path) -> None:
    """Neither with other names, nor with other weights of the second."""
    second = tmp_path / "second"
    second.mkdir()
    for file in tiny_siglip2_folder.iterdir():
        (second / file.name).write_bytes(file.read_bytes())
    config = fresh(semantics=(spaces[0], str(second)), max_steps=1)
    run.align(config)
    with pytest.raises(UserError, match=f"was made with semantics {spaces[0]} {second}, this run asks for {spaces[0]}"):
        run.align(replace(config, semantics=spaces[0], max_steps=2))
    weights = load_file(second / "model.safetensors")
    save_file({**weights, "logit_bias": weights["logit_bias"] + 1}, second / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="made with semantics_sha256 v2:[0-9a-f]+ \\+ v2:.*; restore the semantics"):
        run.align(replace(config, max_steps=2))


def test_spaces_on_the_command_line_in_yaml_and_in_python(tmp_path: Path, monkeypatch) -> None:
    """One is stored by its name alone, as the configurations of earlier versions have it."""
    monkeypatch.setenv("HOME", "/home/me")
    given = [
        (["microworld"], "microworld"),
        (["~/clip", "microworld"], ("/home/me/clip", "microworld")),
        ("~/clip", "/home/me/clip"),
    ]
    for value, expected in given:
        for config in (resolve(AlignConfig, None, {"semantics": value}), AlignConfig(semantics=value)):
            assert config.semantics == expected
            save(config, tmp_path / "config.yaml")
            assert load(AlignConfig, tmp_path / "config.yaml") == config
            stored = read_yaml(tmp_path / "config.yaml")["semantics"]
            assert stored == (list(expected) if isinstance(expected, tuple) else expected)
    for wrong in (["a", "a"], ()):
        with pytest.raises(UserError, match="--semantics.*: name one or more, each once"):
            AlignConfig(semantics=wrong)
    with pytest.raises(UserError, match="--semantics: 3 is not text"):
        resolve(AlignConfig, None, {"semantics": ["a", 3]})


def test_a_text_that_one_space_cannot_read_is_refused(spaces, fresh, tmp_path: Path) -> None:
    """CLIP's tokenizer knows "photo" as one token, SigLIP 2's reads letters."""
    names = tmp_path / "names.txt"
    names.write_text("teacups\nbowl\n")
    state_of(fresh(semantics=spaces[0], vocabulary=str(names)))
    with pytest.raises(UserError, match='line 1: "photo of teacups" is .* tokens long, the text encoder reads 16'):
        state_of(fresh(semantics=spaces, vocabulary=str(names)))
