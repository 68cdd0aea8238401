"""The checkpoint's safety checker against diffusers' own class, on a miniature with random weights."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from miniatures import randomize
from PIL import Image
from screening import CPU, WORLD, patterns, planned
from transformers import CLIPConfig, CLIPImageProcessor

from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.screening.checks import Screen
from lbgen.models.safety import SafetyChecker

PIXELS = patterns(4, 40, 40)


@pytest.fixture(scope="module")
def checked_sd_folder(tiny_sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion folder with a safety checker of random weights that flags the first of PIXELS alone."""
    folder = tmp_path_factory.mktemp("checked") / "sd"
    shutil.copytree(tiny_sd_folder, folder)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(vision_config={**tower, "image_size": 16, "patch_size": 8}, projection_dim=12)
    )
    randomize(checker, seed=4)
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    seen = processor([Image.fromarray(picture) for picture in PIXELS], return_tensors="pt").pixel_values
    with torch.no_grad():
        embeddings = checker.visual_projection(checker.vision_model(seen)[1])  # (4, 12)
        concept = embeddings[0] - embeddings[1:].mean(0)
        first, *others = torch.cosine_similarity(embeddings, concept[None]).tolist()
        assert first > max(others) + 0.05
        checker.concept_embeds[5] = concept
        checker.concept_embeds_weights.fill_(2)  # a cosine that nothing reaches
        checker.concept_embeds_weights[5] = (first + max(others)) / 2
        checker.special_care_embeds_weights.fill_(2)
    for part, name in ((checker, "safety_checker"), (processor, "feature_extractor")):
        part.save_pretrained(folder / name)
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_the_safety_checker_flags_what_diffusers_flags_and_changes_no_image(
    checked_sd_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its has_nsfw_concept, on the pixels of its own processor; and nobody is told of black images."""
    checker = StableDiffusionSafetyChecker.from_pretrained(checked_sd_folder, subfolder="safety_checker")
    processor = CLIPImageProcessor.from_pretrained(checked_sd_folder, subfolder="feature_extractor")
    logger = logging.getLogger(StableDiffusionSafetyChecker.__module__)
    logger.setLevel(logging.WARNING)
    logger.addHandler(caplog.handler)
    seen = processor([Image.fromarray(picture) for picture in PIXELS], return_tensors="pt").pixel_values
    blackened, expected = checker.eval()(clip_input=seen, images=PIXELS.copy())
    assert expected == [True, False, False, False] and not blackened[0].any()
    assert "black image" in caplog.text
    caplog.clear()
    config = GenerateConfig(
        writers=1, screen=("unsafe",), unsafe="checker", generator=str(checked_sd_folder), screen_semantics="/"
    )
    by, pixels = Screen(config, WORLD, CPU), PIXELS.copy()
    verdicts = by.judge(planned(WORLD[:4]), pixels)
    assert [verdict.scores for verdict in verdicts] == [{"unsafe": float(flag)} for flag in expected]
    assert [verdict.reasons for verdict in verdicts] == [("unsafe",) if flag else () for flag in expected]
    assert [by.judge(planned([WORLD[row]]), pixels[row : row + 1]) for row in range(4)] == [[v] for v in verdicts]
    seen = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    assert SafetyChecker(str(checked_sd_folder), CPU, torch.float32).flags(seen).tolist() == expected
    np.testing.assert_array_equal(pixels, PIXELS)
    assert "black image" not in caplog.text
    logger.removeHandler(caplog.handler)


def test_a_checkpoint_without_a_safety_checker_is_refused_with_the_remedy(
    tiny_sd_folder: Path, checked_sd_folder: Path, tmp_path: Path
) -> None:
    """A checkpoint that has none, and one that has it as a pickle only, which is never opened."""
    settings = {"screen": ("unsafe",), "unsafe": "checker"}
    with pytest.raises(UserError, match="has no safety checker .* or --unsafe concepts"):
        Screen(GenerateConfig(**settings, generator=str(tiny_sd_folder)), WORLD, CPU)
    pickled = tmp_path / "pickled"
    shutil.copytree(checked_sd_folder, pickled)
    (pickled / "safety_checker" / "model.safetensors").rename(pickled / "safety_checker" / "pytorch_model.bin")
    with pytest.raises(UserError, match="save it again with safetensors"):
        Screen(GenerateConfig(**settings, generator=str(pickled)), WORLD, CPU)
