"""mPLUG-Owl2 (arXiv 2311.04257), the network of Q-Align and DeQA-Score, for prompts with one image.

A vision transformer (CLIP ViT-L/14 at 448 pixels) encodes the image, a visual abstractor condenses its output into some
tens of tokens, and these replace the image's placeholder in the prompt, which LLaMA-2 reads. In LLaMA-2, image tokens
have their own keys, values and norms. Weight names are those of the released checkpoints.

Shapes: B images, L tokens, D channels of a part.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from msgspec import convert
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedModel
from transformers.models.clip.modeling_clip import CLIPMLP
from transformers.models.llama import modeling_llama as llama

IMAGE_TOKEN = -200
"""Placeholder for the image among a prompt's token ids."""


class MPlugOwl2Config(LlamaConfig):
    """The settings of the language model and of the two visual parts."""

    model_type = "mplug_owl2"
    visual_config: dict | None = None


@dataclass
class AbstractorConfig:
    """`visual_config["visual_abstractor"]`; the defaults are those of the authors' code."""

    num_learnable_queries: int = 64
    hidden_size: int = 1024
    num_hidden_layers: int = 6
    num_attention_heads: int = 16
    intermediate_size: int = 2816
    layer_norm_eps: float = 1e-6
    encoder_hidden_size: int = 1024
    grid_size: int | None = 32


class MPlugOwl2(PreTrainedModel):
    """The logits of the token that follows a prompt with one image in it. Frozen; gradients reach the pixels."""

    config_class = MPlugOwl2Config
    base_model_prefix = ""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.vision_config = CLIPVisionConfig(**(config.visual_config or {}).get("visual_model", {}))
        self.model = _Body(config, self.vision_config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def level_logits(self, pixel_values: Tensor, input_ids: Tensor, level_token_ids: Tensor) -> Tensor:
        """Logits (B, N) of N tokens at the position after the prompt, float32.

        pixel_values: (B, 3, side, side), normalised.  input_ids: (L,), the prompt, in which IMAGE_TOKEN occurs once.
        level_token_ids: (N,).
        """
        hidden = self.model(pixel_values.to(self.dtype), input_ids)  # (B, D)
        return F.linear(hidden, self.lm_head.weight[level_token_ids]).float()


class _Body(nn.Module):
    """Everything but the last layer."""

    def __init__(self, config: Any, vision_config: Any) -> None:
        super().__init__()
        abstractor = convert((config.visual_config or {}).get("visual_abstractor", {}), AbstractorConfig)
        self.vision_model = VisionModel(vision_config)
        self.visual_abstractor = VisualAbstractor(abstractor, config.hidden_size)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LanguageLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = llama.LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = llama.LlamaRotaryEmbedding(config)

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        """The channels of the last token, (B, D)."""
        # The prompt, in which the image's tokens replace IMAGE_TOKEN.
        image = self.visual_abstractor(self.vision_model(pixel_values))  # (B, queries + 1, D)
        place = input_ids.tolist().index(IMAGE_TOKEN)
        before, after = (
            self.embed_tokens(ids).expand(len(image), -1, -1) for ids in (input_ids[:place], input_ids[place + 1 :])
        )
        hidden = torch.cat([before, image, after], dim=1)  # (B, L, D)
        parts = [part.shape[1] for part in (before, image, after)]

        # The language model.
        rotation = self.rotary_emb(hidden, torch.arange(hidden.shape[1], device=hidden.device)[None])
        for layer in self.layers:
            hidden = recomputed(layer, hidden, parts, *rotation)
        return self.norm(hidden[:, -1])


# ---- the language model ----


class Multiway(nn.Module):
    """Two modules of the same shape, one for text tokens and one for image tokens."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.multiway = nn.ModuleList([make(), make()])

    def forward(self, tokens: Tensor, parts: list[int]) -> Tensor:
        """(B, L, D) to (B, L, D').  parts: numbers of tokens before the image, of the image and after it."""
        before, image, after = tokens.split(parts, dim=1)
        text, visual = self.multiway
        return torch.cat([text(before), visual(image), text(after)], dim=1)


class LanguageLayer(nn.Module):
    """A layer of LLaMA with modality-adaptive norms."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.self_attn = LanguageAttention(config)
        self.mlp = llama.LlamaMLP(config)
        self.input_layernorm, self.post_attention_layernorm = (
            Multiway(lambda: llama.LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)) for _ in range(2)
        )

    def forward(self, hidden: Tensor, parts: list[int], cos: Tensor, sin: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden, parts), parts, cos, sin)
        return hidden + self.mlp(self.post_attention_layernorm(hidden, parts))


class LanguageAttention(nn.Module):
    """Causal attention with rotary positions; keys and values are modality-adaptive."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, bias, self.head_width = config.hidden_size, config.attention_bias, config.head_dim
        inner, inner_kv = (
            heads * self.head_width for heads in (config.num_attention_heads, config.num_key_value_heads)
        )
        self.q_proj = nn.Linear(width, inner, bias=bias)
        self.k_proj, self.v_proj = (Multiway(lambda: nn.Linear(width, inner_kv, bias=bias)) for _ in range(2))
        self.o_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, hidden: Tensor, parts: list[int], cos: Tensor, sin: Tensor) -> Tensor:
        projected = self.q_proj(hidden), self.k_proj(hidden, parts), self.v_proj(hidden, parts)
        query, key, value = (split_heads(each, self.head_width) for each in projected)
        query, key = llama.apply_rotary_pos_emb(query, key, cos, sin)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.o_proj(join_heads(attended))


# ---- the vision transformer ----


class VisionModel(nn.Module):
    """CLIP's vision transformer, with all tokens normalised at the end."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.encoder = Encoder(VisionLayer(config) for _ in range(config.num_hidden_layers))
        self.post_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, side, side) to (B, patches + 1, D)."""
        hidden = self.embeddings(pixel_values)
        for layer in self.encoder.layers:
            hidden = recomputed(layer, hidden)
        return self.post_layernorm(hidden)


class VisionEmbeddings(nn.Module):
    """Patches and a class token, with their positions."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, patches = config.hidden_size, (config.image_size // config.patch_size) ** 2
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.patch_embed = nn.Conv2d(3, width, config.patch_size, config.patch_size, bias=False)
        self.position_embedding = nn.Parameter(torch.empty(1, patches + 1, width))
        self.pre_layernorm = nn.LayerNorm(width, config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embed(pixel_values).flatten(2).transpose(1, 2)  # (B, patches, D)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        return self.pre_layernorm(tokens + self.position_embedding)


class VisionLayer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.head_width = width // config.num_attention_heads
        self.input_layernorm = nn.LayerNorm(width, config.layer_norm_eps)
        self.self_attn = nn.ModuleDict(
            {"query_key_value": nn.Linear(width, 3 * width), "dense": nn.Linear(width, width)}
        )
        self.post_attention_layernorm = nn.LayerNorm(width, config.layer_norm_eps)
        self.mlp = CLIPMLP(config)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attend(self.input_layernorm(hidden))
        return hidden + self.mlp(self.post_attention_layernorm(hidden))

    def attend(self, hidden: Tensor) -> Tensor:
        projected = self.self_attn["query_key_value"](hidden)  # query, key and value of each head in turn
        query, key, value = split_heads(projected, 3 * self.head_width).chunk(3, dim=-1)
        return self.self_attn["dense"](join_heads(F.scaled_dot_product_attention(query, key, value)))


# ---- the visual abstractor ----


class VisualAbstractor(nn.Module):
    """Learned queries that attend to themselves and to the image, and a token that ends the image."""

    def __init__(self, config: AbstractorConfig, language_width: int) -> None:
        super().__init__()
        self.query_embeds = nn.Parameter(torch.empty(1, config.num_learnable_queries, config.hidden_size))
        self.encoder = Encoder(
            nn.ModuleDict({"crossattention": AbstractorLayer(config)}) for _ in range(config.num_hidden_layers)
        )
        self.visual_fc = nn.Linear(config.hidden_size, language_width)
        self.vit_eos = nn.Parameter(torch.empty(1, 1, language_width))

    def forward(self, image: Tensor) -> Tensor:
        """(B, patches + 1, D) of the vision model to (B, queries + 1, D) of the language model."""
        queries = self.query_embeds.expand(len(image), -1, -1)
        for layer in self.encoder.layers:
            queries = recomputed(layer.get_submodule("crossattention"), queries, image)
        return torch.cat([self.visual_fc(queries), self.vit_eos.expand(len(image), -1, -1)], dim=1)


class AbstractorLayer(nn.Module):
    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        self.norm1, self.normk = (nn.LayerNorm(config.encoder_hidden_size) for _ in range(2))
        self.attention = AbstractorAttention(config)
        self.output = AbstractorOutput(config)

    def forward(self, queries: Tensor, image: Tensor) -> Tensor:
        queries, image = self.norm1(queries), self.normk(image)
        return self.output(self.attention(queries, image), queries)


class AbstractorAttention(nn.Module):
    """Attention from the queries to the queries and the image; sine positions are stored with the weights."""

    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        width, seen_width = config.hidden_size, config.encoder_hidden_size
        self.head_width = width // config.num_attention_heads
        self.query = nn.Linear(width, width)
        self.key, self.value = (nn.Linear(seen_width, width) for _ in range(2))
        self.q_pos_embed = nn.Parameter(torch.empty(config.num_learnable_queries, width))
        self.k_pos_embed = nn.Parameter(torch.empty((config.grid_size or 32) ** 2 + 1, width))

    def forward(self, queries: Tensor, image: Tensor) -> Tensor:
        seen = torch.cat([queries, image], dim=1)
        positions = torch.cat([self.q_pos_embed, self.k_pos_embed])
        projected = self.query(queries + self.q_pos_embed), self.key(seen + positions), self.value(seen)
        query, key, value = (split_heads(each, self.head_width) for each in projected)
        return join_heads(F.scaled_dot_product_attention(query, key, value))


class AbstractorOutput(nn.Module):
    """The end of a layer: a SwiGLU with a norm before its last linear layer."""

    def __init__(self, config: AbstractorConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.out_proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({name: nn.Linear(width, inner) for name in ("w1", "w3")})
        self.mlp["ffn_ln"] = nn.LayerNorm(inner, config.layer_norm_eps)
        self.mlp["w2"] = nn.Linear(inner, width)

    def forward(self, attended: Tensor, queries: Tensor) -> Tensor:
        queries = queries + self.out_proj(attended)
        hidden = self.norm2(queries)
        hidden = F.silu(self.mlp["w1"](hidden)) * self.mlp["w3"](hidden)
        return queries + self.mlp["w2"](self.mlp["ffn_ln"](hidden))


# ---- shared by the parts ----


class Encoder(nn.Module):
    """The layers of a visual part, with their name in checkpoints."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


def split_heads(tokens: Tensor, width: int) -> Tensor:
    """(B, L, heads * width) to (B, heads, L, width)."""
    return tokens.unflatten(-1, (-1, width)).transpose(1, 2)


def join_heads(tokens: Tensor) -> Tensor:
    """(B, heads, L, width) to (B, L, heads * width)."""
    return tokens.transpose(1, 2).flatten(2)


def recomputed(layer: nn.Module, hidden: Tensor, *inputs: Any) -> Tensor:
    """Apply a layer with gradient checkpointing: its activations are recomputed in the backward pass."""
    return (
        checkpoint(layer, hidden, *inputs, use_reentrant=False) if torch.is_grad_enabled() else layer(hidden, *inputs)
    )
