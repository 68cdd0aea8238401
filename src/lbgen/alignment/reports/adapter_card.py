"""README.md of an adapter in the form of the Hugging Face Hub: a YAML header for programs, Markdown for people."""

from pathlib import Path
from typing import Any

import yaml

from lbgen.alignment.config import AlignConfig
from lbgen.models.checkpoints.suited import pipeline_of
from lbgen.models.registry import ADAPTER_CARD, ADAPTER_FILE, GENERATORS, resolve
from lbgen.report.page import render
from lbgen.runs import atomic
from lbgen.runs.version import __version__
from lbgen.vocabulary.vocabulary import Vocabulary

WITHOUT_LOADER = ("PixArtSigmaPipeline",)
"""Pipeline classes without `load_lora_weights` in diffusers; the file is loaded with peft instead."""
AS_LBGEN = (
    ("PixArtSigmaPipeline", "clean_caption", False),
    ("PixArtSigmaPipeline", "use_resolution_binning", False),
    ("SanaPipeline", "clean_caption", False),
    ("SanaPipeline", "use_resolution_binning", False),
    ("SanaPipeline", "complex_human_instruction", None),
)
"""Pipeline class -> arguments that switch off changes to prompts and sizes, because lbgen makes none."""


def write(adapter: Path, config: AlignConfig, vocabulary: Vocabulary) -> None:
    """Write the card into the adapter's folder. It contains no local paths."""
    where = resolve(config.generator, GENERATORS)
    on_hub = not Path(where).exists()
    base = where if on_hub else config.generator if config.generator in GENERATORS else Path(where).name
    kind = pipeline_of(config.generator, config.revision)
    prompt = config.prompt_template.replace("{name}", vocabulary[0].name)
    text = render(
        "adapter.md.jinja",
        head=yaml.safe_dump(head(where if on_hub else None), sort_keys=False),
        base=base,
        base_repr=repr(base if on_hub else "GENERATOR"),
        flag=base if on_hub or config.generator in GENERATORS else "GENERATOR",
        on_hub=on_hub,
        categories=len(vocabulary),
        has_loader=kind not in WITHOUT_LOADER,
        file=ADAPTER_FILE,
        rank=config.rank,
        call=call(kind, prompt, config),
        settings=settings(config),
    )
    atomic.write_text(adapter / ADAPTER_CARD, text)


def call(kind: str | None, prompt: str, config: AlignConfig) -> dict[str, str]:
    """Arguments, as code, with which a pipeline of this class makes the same images as lbgen."""
    guidance: dict[str, Any] = {"guidance_scale": config.guidance_scale}
    if config.true_cfg_scale > 1:
        guidance |= {"true_cfg_scale": config.true_cfg_scale, "negative_prompt": ""}
    if kind == "ZImagePipeline" and config.guidance_scale == 1:
        guidance = {"guidance_scale": 0.0}  # in this pipeline 0 means no guidance
    own = {name: value for pipeline, name, value in AS_LBGEN if pipeline == kind}
    if config.pipeline_instruction:
        own.pop("complex_human_instruction", None)
    arguments = {"prompt": prompt, "num_inference_steps": config.steps, **guidance, **own}
    return {name: repr(value) for name, value in arguments.items()}


def head(base: str | None) -> dict[str, Any]:
    """The YAML header.  base: the generator's name on the Hub, None if it is not on the Hub."""
    model = {"base_model": base, "base_model_relation": "adapter"} if base else {}
    tags = ["text-to-image", "diffusers", "lora", "lbgen"]
    return {**model, "library_name": "diffusers", "pipeline_tag": "text-to-image", "tags": tags}


def settings(config: AlignConfig) -> list[tuple[str, str]]:
    """The most important settings, for the reader of the card."""
    return [
        ("objective", ", ".join(f"{weight:g} x {name}" for name, weight in config.weights.items() if weight)),
        ("LoRA", f"rank {config.rank}, alpha {config.alpha:g}{', rank-stabilised' * config.use_rslora}"),
        ("sampling", f"{config.scheduler}, {config.steps} steps, {config.guidance}"),
        ("seed", str(config.seed)),
        ("lbgen", __version__),
    ]
