"""Architectures of the micro world's models: miniatures in the formats of Stable Diffusion 1.x, Z-Image and CLIP."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)  # fmt: skip
from diffusers.models.transformers.transformer_z_image import Attention, FeedForward
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
)  # fmt: skip

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
    """An autoencoder from 64x64 pictures to 4x16x16 latents.

    The posterior starts with a small variance, because with unit variance most colour information is lost.
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
    """The scheduler, whose sampling starts at the noisiest timestep ("trailing").

    From a less noisy start, the mean brightness of the initial noise would determine the scene.
    """
    return DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction",
        clip_sample=False, timestep_spacing="trailing",
    )  # fmt: skip


class Denoiser(nn.Module):
    """The UNet and the text encoder that is trained with it."""

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


class FlowDenoiser(nn.Module):
    """Z-Image's transformer and the text encoder that is trained with it.

    The pipeline reads the text encoder's second-last hidden states, which in a single layer are the word embeddings.
    """

    def __init__(self, words: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.text_encoder = Qwen3Model(
            Qwen3Config(
                vocab_size=len(words), hidden_size=TEXT_WIDTH, intermediate_size=TEXT_WIDTH, num_hidden_layers=1,
                num_attention_heads=2, num_key_value_heads=2, head_dim=32, max_position_embeddings=512,
                bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
            )
        )  # fmt: skip
        self.transformer = ZImageTransformer2DModel(
            in_channels=LATENTS, dim=192, n_layers=4, n_refiner_layers=1, n_heads=6, n_kv_heads=6,
            cap_feat_dim=TEXT_WIDTH, axes_dims=[8, 12, 12], axes_lens=[64, 32, 32],
        )  # fmt: skip
        for token in (self.transformer.x_pad_token, self.transformer.cap_pad_token):
            nn.init.normal_(token, std=0.02)
        for layer in self.transformer.all_final_layer.values():
            nn.init.zeros_(layer.linear.weight)

    def forward(self, noisy: Tensor, sigmas: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Predicts noise - image from latents (B, C, h, w) with noise levels (B,) in [0, 1]; tokens, mask: (B, T)."""
        hidden = self.text_encoder(tokens, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
        texts = [row[: int(count)] for row, count in zip(hidden, mask.sum(1), strict=True)]
        predictions = self.transformer(list(noisy.unsqueeze(2)), 1 - sigmas, texts, return_dict=False)[0]
        return -torch.stack(predictions).squeeze(2)

    def matrices(self) -> list[nn.Parameter]:
        """The weights of the transformer's attention and feed-forward layers."""
        blocks = [part for part in self.transformer.modules() if isinstance(part, (Attention, FeedForward))]
        return [weight for block in blocks for weight in block.parameters() if weight.ndim == 2]
