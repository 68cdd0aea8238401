"""The architectures of the micro world's models: miniatures in the formats of Stable Diffusion 1.x and CLIP."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from lbgen.microworld.corpus import WORDS
from lbgen.microworld.scenes import SIZE

TEXT_LENGTH = 12
TEXT_WIDTH = 64
LATENTS = 4


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per lower-cased word. The end token has the highest id, by which CLIP's text model finds it."""
    tokens = ["<pad>", "<unk>", "<start>", *WORDS, "<end>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[(name, vocabulary[name]) for name in ("<start>", "<end>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, model_max_length=TEXT_LENGTH, pad_token="<pad>", unk_token="<unk>", bos_token="<start>",
        eos_token="<end>",
    )  # fmt: skip


def _text_config(words: PreTrainedTokenizerFast, layers: int, width: int) -> dict[str, Any]:
    return dict(
        vocab_size=len(words), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=TEXT_LENGTH, projection_dim=width, hidden_act="gelu",
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip


def semantic_model(words: PreTrainedTokenizerFast) -> CLIPModel:
    width = 96
    vision = dict(
        hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        image_size=SIZE, patch_size=8, projection_dim=width, hidden_act="gelu",
    )  # fmt: skip
    config = CLIPConfig(text_config=_text_config(words, 2, width), vision_config=vision, projection_dim=width)
    return CLIPModel(config)


def autoencoder() -> AutoencoderKL:
    """64x64 pictures to 4x16x16 latents.

    The posterior starts with a small variance: with unit variance little of the colours gets through.
    """
    model = AutoencoderKL(
        latent_channels=LATENTS, block_out_channels=(16, 32, 64), layers_per_block=1, norm_num_groups=4,
        sample_size=SIZE,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        mid_block_add_attention=False,
    )  # fmt: skip
    log_variance = slice(LATENTS, 2 * LATENTS)
    nn.init.zeros_(model.quant_conv.weight[log_variance])
    nn.init.constant_(model.quant_conv.bias[log_variance], -5.0)
    return model


def noise_scheduler() -> DDPMScheduler:
    """Sampling starts at the noisiest timestep ("trailing").

    If it started at a less noisy one, the mean brightness of the starting noise would determine the scene.
    """
    return DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction",
        clip_sample=False, timestep_spacing="trailing",
    )  # fmt: skip


class Denoiser(nn.Module):
    """The UNet and the text encoder it is trained with."""

    def __init__(self, words: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(CLIPTextConfig(**_text_config(words, 1, TEXT_WIDTH)))
        self.unet = UNet2DConditionModel(
            sample_size=SIZE // 4, in_channels=LATENTS, out_channels=LATENTS, block_out_channels=(32, 64, 128),
            layers_per_block=1, norm_num_groups=16,
            cross_attention_dim=TEXT_WIDTH, attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        return self.unet(noisy, timesteps, self.text_encoder(tokens)[0]).sample
