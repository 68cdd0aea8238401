"""README.md of an adapter, as the Hugging Face Hub reads it: a YAML head for programs, Markdown for people."""

from pathlib import Path
from typing import Any

import yaml

from lbgen import __version__
from lbgen.alignment.config import AlignConfig
from lbgen.models.registry import ADAPTER_CARD, GENERATORS, resolve
from lbgen.report.page import render
from lbgen.runs import atomic
from lbgen.vocabulary.vocabulary import Vocabulary


def write(adapter: Path, config: AlignConfig, vocabulary: Vocabulary) -> None:
    """Write the card into the adapter's folder. It names no folder of this machine."""
    where = resolve(config.generator, GENERATORS)
    on_hub = not Path(where).is_dir()
    base = where if on_hub else config.generator if config.generator in GENERATORS else Path(where).name
    prompt = config.prompt_template.replace("{name}", vocabulary[0].name)
    text = render(
        "adapter.md.jinja",
        head=yaml.safe_dump(head(where if on_hub else None), sort_keys=False),
        base=base,
        base_repr=repr(base if on_hub else "GENERATOR"),
        flag=base if on_hub or config.generator in GENERATORS else "GENERATOR",
        on_hub=on_hub,
        categories=len(vocabulary),
        prompt_repr=repr(prompt),
        steps=config.steps,
        guidance_scale=config.guidance_scale,
        settings=settings(config),
    )
    atomic.write_text(adapter / ADAPTER_CARD, text)


def head(base: str | None) -> dict[str, Any]:
    """The YAML head.  base: the generator's name on the Hub, None for one that is not there."""
    model = {"base_model": base, "base_model_relation": "adapter"} if base else {}
    tags = ["text-to-image", "diffusers", "lora", "lbgen"]
    return {**model, "library_name": "diffusers", "pipeline_tag": "text-to-image", "tags": tags}


def settings(config: AlignConfig) -> list[tuple[str, str]]:
    """What a reader of the card wants to know first."""
    return [
        ("objective", ", ".join(f"{weight:g} x {name}" for name, weight in config.weights.items() if weight)),
        ("LoRA", f"rank {config.rank}, alpha {config.alpha:g}"),
        ("sampling", f"{config.scheduler}, {config.steps} steps, guidance {config.guidance_scale:g}"),
        ("seed", str(config.seed)),
        ("lbgen", __version__),
    ]
