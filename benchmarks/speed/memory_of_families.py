"""Memory of every family, counted or measured: `python benchmarks/speed/memory_of_families.py [--measured]`.

One checkpoint of each at full size, with the settings that its makers published, in bf16 on tensors without data, as in
memory.py: nothing is computed, bytes are counted. With --measured the same is computed on a GPU with weights of 0, and
the most that its allocator held is shown; without a GPU bytes are counted again, of tensors with data.
The text encoders are the most that is loaded before the first step; they leave the GPU before sampling, except those of
Stable Diffusion XL, which stay.
"""

import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measuring import flags_parser, markdown
from benchmarks.speed import full_size
from benchmarks.speed.memory import Additive, counted, generator_modules, give_weights
from lbgen.alignment.config import AlignConfig
from lbgen.configuration.recipes import resolve
from lbgen.models.families.family import Conditioning, Schedule
from lbgen.models.families.flux import Flux
from lbgen.models.families.flux_2_klein import Flux2Klein
from lbgen.models.families.pixart_sigma import PixArtSigma
from lbgen.models.families.sana import Sana
from lbgen.models.families.stable_diffusion_3 import StableDiffusion3
from lbgen.models.families.stable_diffusion_xl import StableDiffusionXL
from lbgen.models.families.z_image import ZImage
from lbgen.models.generator import Generator
from lbgen.models.guidance import Guidance
from lbgen.models.sampling import sample

DTYPE = torch.bfloat16
SIDE = 1024
"""Side of an image in pixels; the native size of all families."""
SMALL_SIDE = 64
GPU = torch.cuda.is_available()
MOST_TOKENS = 512


def t5() -> nn.Module:
    """The encoder of T5 v1.1 XXL."""
    layers = {"num_layers": 24, "num_heads": 64, "d_model": 4096, "d_kv": 64, "d_ff": 10240}
    return T5EncoderModel(T5Config(**layers, feed_forward_proj="gated-gelu", vocab_size=32128))


def clip_large() -> nn.Module:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(**full_size.tower(768, 12, 12), vocab_size=49408, projection_dim=768)
    )


def clip_big() -> nn.Module:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(**full_size.tower(1280, 32, 20), vocab_size=49408, projection_dim=1280)
    )


def qwen3_4b() -> nn.Module:
    layers = {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    return Qwen3Model(Qwen3Config(hidden_size=2560, intermediate_size=9728, vocab_size=151936, **layers))


def gemma2_2b() -> nn.Module:
    return Gemma2Model(Gemma2Config())


def sdxl_unet() -> nn.Module:
    return UNet2DConditionModel(
        sample_size=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def pixart() -> nn.Module:
    return PixArtTransformer2DModel(
        sample_size=128, caption_channels=4096, interpolation_scale=2, use_additional_conditions=False
    )


def sd35(layers: int, positions: int, **settings: Any) -> Callable[[], nn.Module]:
    sizes = {"num_layers": layers, "num_attention_heads": layers, "caption_projection_dim": 64 * layers}
    return lambda: SD3Transformer2DModel(
        **sizes, pos_embed_max_size=positions, joint_attention_dim=4096, pooled_projection_dim=2048, qk_norm="rms_norm",
        **settings,
    )  # fmt: skip


def klein() -> nn.Module:
    return Flux2Transformer2DModel(
        num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False
    )


def sana() -> nn.Module:
    return SanaTransformer2DModel(caption_channels=2304, sample_size=32)


def kl(channels: int) -> Callable[[], nn.Module]:
    return lambda: AutoencoderKL(
        latent_channels=channels,
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=SIDE,
    )


def deep_compression() -> nn.Module:
    """The autoencoder of Sana: 32 times smaller."""
    kinds = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    channels, scales = (128, 256, 512, 512, 1024, 1024), ((),) * 3 + ((5,),) * 3
    return AutoencoderDC(
        latent_channels=32,
        encoder_block_types=kinds,
        decoder_block_types=kinds,
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        encoder_layers_per_block=(2, 2, 2, 3, 3, 3),
        decoder_layers_per_block=(3,) * 6,
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    )


@dataclass(frozen=True)
class Architecture:
    family: Any
    network: Callable[[], nn.Module]
    autoencoder: Callable[[], nn.Module]
    text_encoders: tuple[Callable[[], nn.Module], ...]
    texts: dict[str, tuple[int, ...]]
    """Shape of each tensor of a prompt."""
    two_calls: bool = True
    """Classifier-free guidance."""
    own: dict[str, Any] = field(default_factory=dict)
    """Attributes of the family."""
    factor: int = 8
    """Pixels a latent."""


SD3_TEXTS = {"text": (333, 4096), "pooled": (2048,)}
ENCODERS = (clip_large, clip_big, t5)
DUAL = {"dual_attention_layers": tuple(range(13))}
ARCHITECTURES = {
    "sdxl": Architecture(
        StableDiffusionXL, sdxl_unet, kl(4), (clip_large, clip_big), {"text": (77, 2048), "pooled": (1280,)}
    ),
    "pixart-sigma": Architecture(PixArtSigma, pixart, kl(4), (t5,), {"text": (300, 4096), "mask": (300,)}),
    "sd35-medium": Architecture(StableDiffusion3, sd35(24, 384, **DUAL), kl(16), ENCODERS, SD3_TEXTS),
    "sd35-large": Architecture(StableDiffusion3, sd35(38, 192), kl(16), ENCODERS, SD3_TEXTS),
    "flux-dev": Architecture(
        Flux,
        lambda: FluxTransformer2DModel(guidance_embeds=True),
        kl(16),
        (clip_large, t5),
        {"text": (512, 4096), "pooled": (768,)},
        two_calls=False,
        own={"embedded_guidance": 3.5},
    ),
    "flux2-klein-base-4b": Architecture(
        Flux2Klein, klein, AutoencoderKLFlux2, (qwen3_4b,), {"text": (512, 7680)}
    ),
    "sana-1600m": Architecture(
        Sana, sana, deep_compression, (gemma2_2b,), {"text": (300, 2304), "mask": (300,)}, factor=32
    ),
    "z-image": Architecture(ZImage, ZImageTransformer2DModel, kl(16), (qwen3_4b,), {"text": (512, 2560)}),
}  # fmt: skip


@dataclass(frozen=True)
class Way:
    """How memory is found."""

    measured: bool
    side: int
    clip: full_size.Size

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.measured and GPU else "cpu")

    def most_held(self, modules: Sequence[nn.Module], work: Callable[[], Callable[[], object]]) -> float:
        """Most GB held by the function that `work` returns; `work` makes its inputs and may look at the weights."""
        if not self.measured:
            with FakeTensorMode(allow_non_fake_inputs=True):
                give_weights(*modules)
                return counted(work(), modules)[1]
        give_weights(*modules, device=self.device)
        if not GPU:
            return counted(work(), modules)[1]
        torch.cuda.reset_peak_memory_stats()
        work()()
        return torch.cuda.max_memory_allocated() / 1e9


def without_text_encoders(architecture: Architecture, way: Way) -> Any:
    """The family's own methods on networks of the meta device; schedules and prompts are given as tensors."""

    class WithoutTextEncoders(architecture.family):  # type: ignore[misc]
        def __init__(self) -> None:
            self.name, self.device, self.dtype = "full size", way.device, DTYPE
            self.network = self.transformer = self.unet = architecture.network().to(DTYPE)
            self.vae = architecture.autoencoder().to(DTYPE)
            self.text_encoders: dict[str, Any] = {}
            self.pipeline = SimpleNamespace(
                vae_scale_factor=architecture.factor, config=SimpleNamespace(is_distilled=False)
            )
            self.default_size, self.token_limit = (way.side, way.side), MOST_TOKENS
            for name, value in architecture.own.items():
                setattr(self, name, value)

        def timesteps(self, steps: int, latent_shape: tuple[int, int, int]) -> Schedule:
            return Additive(torch.zeros(steps, device=way.device), 1.0, None)

        def predict(self, network: Any, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
            tensors = dict(conditioning.tensors)
            with unset_fake_temporarily():  # Z-Image reads the numbers
                tensors["tokens"] = torch.full((len(latents),), MOST_TOKENS)
            predicted: Tensor = super().predict(network, latents, timestep, Conditioning(tensors))
            return predicted

    return WithoutTextEncoders()


def prompts(architecture: Architecture, way: Way, images: int) -> Conditioning:
    def tensors() -> dict[str, Tensor]:
        made = {name: torch.zeros(images, *shape, dtype=DTYPE) for name, shape in architecture.texts.items()}
        return {name: tensor.to(way.device) for name, tensor in made.items()}

    return Conditioning(tensors(), Conditioning(tensors()) if architecture.two_calls else None)


def latents(architecture: Architecture, way: Way, family: Any, images: int) -> Tensor:
    side, channels = way.side // architecture.factor, family.vae.config.latent_channels
    if architecture.family is Flux2Klein:
        side, channels = side // 2, family.network.config.in_channels
    return torch.zeros(images, channels, side, side, device=way.device)


def prepared(architecture: Architecture, way: Way, *, merged_sampler: bool = False) -> Generator:
    guidance = Guidance(2.0 if architecture.two_calls else 1.0)
    with torch.device("meta"):
        return Generator(without_text_encoders(architecture, way), guidance, merged_sampler=merged_sampler)


def update_memory(architecture: Architecture, way: Way, config: AlignConfig) -> float:
    """Most GB held in an update of one image: sampling, CLIP's image features, backward, AdamW."""
    generator = prepared(architecture, way, merged_sampler=config.merged_sampler)
    with torch.device("meta"):
        generator.add_adapter(config.rank, config.alpha, config.lora_targets)
        generator.refresh_sampler()
        clip = full_size.clip(full_size.letters(), way.clip).to(DTYPE).requires_grad_(False)
    generator.enable_gradient_checkpointing()
    steps = config.differentiated_steps

    def work() -> Callable[[], object]:
        optimizer = torch.optim.AdamW([parameter for _, parameter in generator.adapter_parameters()])
        texts, noise = prompts(architecture, way, 1), latents(architecture, way, generator.family, 1)

        def update() -> None:
            pictures = sample(generator, texts, noise, steps=steps, differentiate_at=frozenset(range(steps)))
            pixels = F.interpolate(pictures, (way.clip.image,) * 2, mode="bicubic", antialias=True)
            clip.get_image_features(pixels.to(DTYPE)).pooler_output.float().sum().backward()
            optimizer.step()

        return update

    return way.most_held((*generator_modules(generator), clip), work)


@torch.no_grad()
def generation_memory(architecture: Architecture, way: Way, images: int) -> float:
    """Most GB held while a batch is generated."""
    generator = prepared(architecture, way)

    def work() -> Callable[[], object]:
        texts, noise = prompts(architecture, way, images), latents(architecture, way, generator.family, images)
        return lambda: sample(generator, texts, noise, steps=1)

    return way.most_held(generator_modules(generator), work)


def millions(*makers: Callable[[], nn.Module]) -> float:
    with torch.device("meta"):
        return sum(parameter.numel() for make in makers for parameter in make().parameters()) / 1e6


def main(argv: list[str] | None = None) -> None:
    parser = flags_parser(__doc__)
    parser.add_argument("--families", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--generated", type=int, nargs="+", default=[1, 8], help="images of a batch (default: 1 8)")
    parser.add_argument("--steps", type=int, help="differentiated ones of an update (default: those of recipe paper)")
    parser.add_argument("--measured", action="store_true", help="compute on a GPU, and show what its allocator held")
    parser.add_argument("--small", action="store_true", help="small images and CLIP, to try it without a GPU")
    arguments = parser.parse_args(argv)
    side, clip = (SMALL_SIDE, full_size.MINIATURE) if arguments.small else (SIDE, full_size.FULL)
    way = Way(arguments.measured, side, clip)
    given = {} if arguments.steps is None else {"differentiated_steps": arguments.steps}
    config = resolve(AlignConfig, "paper", given)
    titles = [
        "generator",
        "network, M",
        "text encoders, M",
        "text encoders, GB",
        "align, 1 image, GB",
        "--no-merged-sampler, GB",
    ]
    lines = [titles + [f"generate, {images} at once, GB" for images in arguments.generated]]
    for name in arguments.families:
        architecture = ARCHITECTURES[name]
        encoders = millions(*architecture.text_encoders)
        cells = [name, f"{millions(architecture.network):,.0f}", f"{encoders:,.0f}", f"{2 * encoders / 1e3:.1f}"]
        for merged in (True, False):
            cells.append(f"{update_memory(architecture, way, replace(config, merged_sampler=merged)):.1f}")
            gc.collect()  # networks and their hooks refer to each other
        cells += [f"{generation_memory(architecture, way, images):.1f}" for images in arguments.generated]
        lines.append(cells)
    print(markdown(lines))


if __name__ == "__main__":
    main()
