"""Time and peak memory of one alignment update, of lbgen and of a loop like the reference's: `make bench`.

In one table both versions use gradient checkpointing, as the reference does, in the other neither does;
`--checkpointing on` or `off` makes only one of them (`--gradient-checkpointing` has no effect here). The micro
world's recipe by default; every flag of `lbgen align` is accepted. With `--compile`, lbgen is also measured
eager. On a CPU, lines below each table compare CPU seconds of updates in turn, and give the share of convolutions,
matrix products and attention in the CPU time of lbgen's update. The reference's loop computes in fp16 on a GPU,
whatever `--precision` is, and in fp32 on a CPU.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline
from peft import LoraConfig
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measuring import (
    DEVICE,
    Version,
    by_turns,
    flags_parser,
    heading,
    in_fresh_process,
    measured,
    parse_with,
    table,
)
from benchmarks.speed.flops import network_calls, update_tflop, work_of
from benchmarks.updates import align_update
from lbgen.alignment.config import AlignConfig
from lbgen.configuration import recipes
from lbgen.models.quality.antonyms import ANTONYMS
from lbgen.models.registry import GENERATORS, SEMANTICS, resolve
from lbgen.vocabulary.vocabulary import load_vocabulary

KERNELS = (
    "aten::mkldnn_convolution",
    "aten::convolution_backward",
    "aten::addmm",
    "aten::mm",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
)
"""torch's names for convolutions, matrix products and attention on a CPU."""
PLAIN_DTYPE = torch.float16 if DEVICE == "cuda" else torch.float32


class PlainUpdate:
    """One update as the reference's script makes it (docs/reference.md), on plain diffusers: LoRA unmerged, eager,
    autocast, images decoded all at once, the adapter before the discriminator, prompts encoded at every update.

    With gradient checkpointing it recomputes the UNet alone; lbgen recomputes the decoder too. The terms are those of
    the config. Theirs scores quality with a network of 8 billion parameters; here both use the antonym prompts.
    """

    def __init__(self, config: AlignConfig) -> None:
        torch.manual_seed(0)
        self.config = config
        self.names = load_vocabulary(config.vocabulary, config.qualify_names).names
        where = resolve(config.generator, GENERATORS)
        self.pipeline = StableDiffusionPipeline.from_pretrained(where, safety_checker=None).to(DEVICE, PLAIN_DTYPE)
        self.unet, self.vae = self.pipeline.unet, self.pipeline.vae
        for module in (self.unet, self.vae, self.pipeline.text_encoder):
            module.requires_grad_(False)
        scheduler = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler}[config.scheduler]
        self.scheduler = scheduler.from_config(self.pipeline.scheduler.config, clip_sample=False)
        self._add_adapter()
        self._load_clip()
        self.discriminator = nn.Sequential(nn.Linear(self.texts.shape[1], 3), nn.LeakyReLU(0.2), nn.Linear(3, 1)).to(
            DEVICE
        )
        with torch.no_grad():
            self.empty = self.pipeline.encode_prompt([""] * config.batch_size, DEVICE, 1, False)[0]  # (B, T, D)
        self.optimizer = torch.optim.AdamW(self.parameters, config.learning_rate)
        self.discriminator_optimizer = torch.optim.AdamW(
            self.discriminator.parameters(), config.discriminator_learning_rate
        )
        self.scaler = torch.amp.GradScaler(DEVICE, enabled=DEVICE == "cuda")

    def _add_adapter(self) -> None:
        config = self.config
        lora = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            target_modules=list(config.lora_targets),
            init_lora_weights="gaussian",
        )
        self.unet.add_adapter(lora)
        if self.config.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.unet.train()
        self.parameters = [parameter for parameter in self.unet.parameters() if parameter.requires_grad]
        for parameter in self.parameters:
            parameter.data = parameter.data.float()

    def _load_clip(self) -> None:
        """CLIP, the features of every category's name (categories, D), and of a good photo and a bad one (2, D)."""
        where = resolve(self.config.semantics, SEMANTICS)
        self.clip = CLIPModel.from_pretrained(where, dtype=PLAIN_DTYPE).to(DEVICE).requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(where)
        self.texts, self.antonyms = self.text_features(self.names), self.text_features(list(ANTONYMS[0]))

    def text_features(self, texts: list[str]) -> Tensor:
        """CLIP features (N, D), unit norm."""
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt").to(DEVICE)
        found = self.clip.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return F.normalize(found.pooler_output.float(), dim=-1)

    def __call__(self) -> None:
        """One update of the adapter, then one of the discriminator, on one batch."""
        categories = torch.randint(len(self.names), (self.config.batch_size,))
        names = [self.names[category] for category in categories]
        features = self.embedded(self.sampled(names))
        own_texts = self.text_features([f"photo of {name}" for name in names])

        logits = self.discriminator(features)  # high for images, as in their code
        entire = F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))
        individual = 1 - (features * own_texts).sum(dim=-1).mean()
        preference = self.clip.logit_scale.float().exp() * features @ self.antonyms.T  # (B, 2)
        quality = 1 - (1 + 4 * preference.softmax(dim=-1)[:, 0]).mean() / 5
        self.optimizer.zero_grad()
        self.scaler.scale(entire + individual + self.config.quality_weight * quality).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

        fake, real = self.discriminator(features.detach()), self.discriminator(self.texts[: len(features)])
        labels = torch.cat([torch.ones_like(fake), torch.zeros_like(real)])
        self.discriminator_optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(torch.cat([fake, real]), labels).backward()
        self.discriminator_optimizer.step()

    def sampled(self, prompts: list[str]) -> Tensor:
        """Images (B, 3, H, W), with the gradient of K evenly spaced calls of the UNet."""
        config, size = self.config, self.unet.config.sample_size
        with torch.no_grad():
            embeddings = torch.cat(
                [self.empty, self.pipeline.encode_prompt(prompts, DEVICE, 1, False)[0]]
            )  # (2B, T, D)
        self.scheduler.set_timesteps(config.steps)
        interval = config.steps // config.differentiated_steps
        start = int(torch.randint(config.steps - interval * (config.differentiated_steps - 1), ()))
        differentiated = {start + interval * number for number in range(config.differentiated_steps)}
        latents = torch.randn(len(prompts), 4, size, size, device=DEVICE, dtype=PLAIN_DTYPE)
        for index, timestep in enumerate(self.scheduler.timesteps):
            with torch.set_grad_enabled(index in differentiated), self._autocast():
                prediction = self.unet(torch.cat([latents, latents]), timestep, embeddings).sample
            with torch.set_grad_enabled(index >= start):
                without, within = prediction.chunk(2)
                guided = without + config.guidance_scale * (within - without)
                latents = self.scheduler.step(guided, timestep, latents).prev_sample
        with self._autocast():
            return self.vae.decode(latents / self.vae.config.scaling_factor).sample / 2 + 0.5

    def embedded(self, images: Tensor) -> Tensor:
        """CLIP features (B, D), unit norm."""
        size = self.clip.config.vision_config.image_size
        pixels = F.interpolate(images.float(), (size, size), mode="bicubic", antialias=True)
        mean, std = (torch.tensor(each, device=DEVICE).view(3, 1, 1) for each in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        features = self.clip.get_image_features(((pixels - mean) / std).to(PLAIN_DTYPE)).pooler_output
        return F.normalize(features.float(), dim=-1)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(DEVICE, PLAIN_DTYPE, enabled=DEVICE == "cuda")


def main(argv: list[str] | None = None) -> None:
    parser = flags_parser(__doc__)
    parser.add_argument("--recipe", default="microworld", help="settings of `lbgen align` (default: microworld)")
    parser.add_argument("--repeats", type=int, default=5, help="updates measured, after one that is not (default: 5)")
    parser.add_argument("--checkpointing", choices=("on", "off", "both"), default="both", help="(default: both)")
    arguments, given = parse_with(parser, AlignConfig, argv)
    config = recipes.resolve(AlignConfig, arguments.recipe, {**given, "logger": "none"})
    tflop = update_tflop(config, work_of(config.generator), network_calls(config))
    print(heading(), flush=True)
    for setting in ("on", "off") if arguments.checkpointing == "both" else (arguments.checkpointing,):
        versions = compared(replace(config, gradient_checkpointing=setting == "on"))
        results = {name: measured(arguments.repeats, *version) for name, version in versions.items()}
        print(f"gradient checkpointing {setting}, in every line:\n")
        print(table(results, config.batch_size, dict.fromkeys(results, tflop)) + "\n", flush=True)
        if DEVICE == "cpu":
            print(by_turns(arguments.repeats, versions))
            share = in_fresh_process(
                kernel_share, replace(config, gradient_checkpointing=setting == "on", compile=False)
            )
            print(
                f"convolutions, matrix products, attention: {share:.0%} of the CPU time of lbgen's update\n", flush=True
            )


def compared(config: AlignConfig) -> dict[str, Version]:
    """The reference's way and lbgen, both with or both without gradient checkpointing."""
    versions: dict[str, Version] = {"plain diffusers": (PlainUpdate, config)}
    if config.compile:
        versions["lbgen, eager"] = (align_update, replace(config, compile=False))
    return versions | {"lbgen": (align_update, config)}


def kernel_share(config: AlignConfig) -> float:
    """The share of KERNELS in the CPU time of an update, by torch's profiler, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    update = align_update(config)
    update()  # the first one prepares kernels
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        update()
    torch.set_num_threads(threads)
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    assert times.keys() >= set(KERNELS), f"torch has other names for {set(KERNELS) - times.keys()}"
    return sum(times[name] for name in KERNELS) / sum(times.values())


if __name__ == "__main__":
    main()
