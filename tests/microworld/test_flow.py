"""The micro world's flow-matching generator: against plain diffusers, and through the whole street."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from folders import contents
from safetensors.torch import load_file

from lbgen import microworld
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.run import align
from lbgen.configuration.recipes import resolve
from lbgen.generation.config import GenerateConfig
from lbgen.generation.estimate import plan
from lbgen.generation.run import generate
from lbgen.generation.verify import verify
from lbgen.microworld.architectures import FlowDenoiser, tokenizer
from lbgen.microworld.card import write_flow
from lbgen.models.generator import load_generator
from lbgen.models.noise import stacked_noise
from lbgen.models.registry import GENERATORS
from lbgen.models.sampling import render_images


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> tuple[FlowDenoiser, Path]:
    """A denoiser with random weights, and the folder that the card's code writes of its checkpoint."""
    folder = tmp_path_factory.mktemp("flow")
    torch.manual_seed(0)
    denoiser = FlowDenoiser(tokenizer())
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    denoiser.half().float()
    torch.save({"averaged": denoiser.state_dict()}, folder / "flow.pt")
    write_flow(folder, folder / "pipeline")
    return denoiser.eval(), folder / "pipeline"


def test_training_sees_what_the_plain_pipeline_sees(untrained):
    """The velocity in training against the pipeline's own encoding of the prompts and call of the transformer."""
    denoiser, folder = untrained
    pipeline = ZImagePipeline.from_pretrained(folder, torch_dtype=torch.float32)
    prompts, latents = ["", "photo of fish", "cup on snow"], torch.randn(3, 4, 16, 16)
    sigmas = torch.tensor([0.1, 0.5, 1.0])
    texts, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
    with torch.no_grad():
        expected = pipeline.transformer(list(latents.unsqueeze(2)), 1 - sigmas, texts, return_dict=False)[0]
        tokens = tokenizer()(prompts, padding=True, return_tensors="pt")
        seen = denoiser(latents, sigmas, tokens.input_ids, tokens.attention_mask)
    torch.testing.assert_close(seen, -torch.stack(expected).squeeze(2), rtol=1e-4, atol=1e-4)
    assert seen.std() > 0.1


def test_the_name_draws_what_plain_diffusers_draws():
    """The shipped folder in ZImagePipeline, from the same noise."""
    generator = load_generator("microworld-flow", scheduler=None, guidance_scale=2.0)
    (image,) = render_images(generator, [("cup", 0, 0)], ["cup"], seed=3, steps=3)
    pipeline = ZImagePipeline.from_pretrained(microworld.FLOW, torch_dtype=torch.float32)
    noise, _ = stacked_noise(3, [("cup", 0, 0)], (4, 16, 16))
    pixels = pipeline(
        "cup", height=64, width=64, num_inference_steps=3, guidance_scale=2.0, latents=noise, output_type="pt"
    ).images[0]  # fmt: skip
    torch.testing.assert_close(image.clamp(0, 1), pixels, rtol=0, atol=1e-4)


def test_it_is_small_and_has_the_first_generators_autoencoder():
    weights = list(microworld.FLOW.rglob("*.safetensors"))
    assert GENERATORS["microworld-flow"] == str(microworld.FLOW)
    assert sum(path.stat().st_size for path in weights) <= 10e6
    assert ZImageTransformer2DModel.from_pretrained(microworld.FLOW / "transformer").num_parameters() <= 4e6
    first, second = (load_file(folder / "vae" / "diffusion_pytorch_model.safetensors") for folder in (
        microworld.GENERATOR, microworld.FLOW
    ))  # fmt: skip
    assert all(torch.equal(first[name], second[name]) for name in {*first, *second})


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    """Two updates of recipe `independent`."""
    tiny = {"max_steps": 2, "batch_size": 2, "steps": 2, "differentiated_steps": 1, "independence_bank": 24}
    own = {"generator": "microworld-flow", "scheduler": "native", "logger": "none", "evaluate_every": 0}
    config = resolve(AlignConfig, "independent", {**tiny, **own, "output": tmp_path_factory.mktemp("align") / "run"})
    align(config)
    return config.folder / "adapter"


def test_it_goes_through_the_whole_street(adapter, tmp_path, capsys):
    """Aligned, planned, generated and screened; with a lost part made again, and by two workers, the same bytes."""
    moved = [name for name, weight in load_file(adapter / "pytorch_lora_weights.safetensors").items() if weight.any()]
    assert any("lora_B" in name for name in moved)
    config = GenerateConfig(
        output=tmp_path / "whole", vocabulary="microworld", generator="microworld-flow", adapter=adapter,
        scheduler="native", steps=2,
        images_per_category=1, batch_size=6, shard_size=6, writers=1, screen=("label", "blank"), max_attempts=2,
        screen_semantics="microworld", label_top_k=1,
    )  # fmt: skip
    plan(config)
    assert "Apache-2.0" in capsys.readouterr().out
    generate(config)
    made = contents(tmp_path / "whole")
    assert not verify(tmp_path / "whole").damaged
    (tmp_path / "whole/index/train-00001.parquet").unlink()
    generate(config)
    generate(replace(config, output=tmp_path / "two", workers=2))
    assert contents(tmp_path / "whole") == made == contents(tmp_path / "two")
