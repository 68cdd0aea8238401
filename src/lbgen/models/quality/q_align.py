"""Q-Align (arXiv 2312.17090) and DeQA-Score (arXiv 2501.11561): a language model rates the quality of an image."""

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, BitsAndBytesConfig, LlamaConfig, LlamaTokenizer, TorchAoConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from lbgen.errors import UserError
from lbgen.models.loading import load_model, loading
from lbgen.models.quality.mplug_owl2 import IMAGE_TOKEN, MPlugOwl2, MPlugOwl2Config
from lbgen.models.registry import Quantization, ensure_tokenizer, refuse_other_type

QUESTION = "USER: How would you rate the quality of this image?\n"
ANSWER = "\nASSISTANT: The quality of the image is"
"""The prompt before and after the image."""
LEVELS = {"excellent": 5.0, "good": 4.0, "fair": 3.0, "poor": 2.0, "bad": 1.0}
"""The words that may follow, and the score of each."""
FLAG = "--quality q-align:"


class QAlign:
    """The expected score: a softmax over the five words that may end the answer, times their scores.

    Frozen; activations are recomputed in the backward pass, because 56 large layers need much memory.
    """

    def __init__(
        self, where: str, device: torch.device, dtype: torch.dtype, quantization: Quantization | None = None
    ) -> None:
        """where: folder or hub id of the weights, in safetensors."""
        self.where, self.device = where, device
        rounding = quantizer(quantization, dtype)
        with loading(FLAG, where, marker="config.json"):
            config = MPlugOwl2Config.get_config_dict(where)[0]
            refuse_other_type(where, config.get("model_type"))
            self.model: MPlugOwl2 = load_model(
                MPlugOwl2, where, dtype, device_map={"": device}, quantization_config=rounding
            )
        # In eval mode bitsandbytes computes on a CPU without gradients; nothing else here depends on the mode.
        self.model.train(quantization == "nf4").requires_grad_(False)

    def score(self, images: Tensor, features: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) in about [0, 1], any size, to scores (B,) in [1, 5].  features: not used."""
        pixels = prepare(images.to(self.device).float(), self.model.vision_config.image_size)
        prompt, levels = self._tokens
        probabilities = self.model.level_logits(pixels, prompt, levels).softmax(dim=-1)  # (B, 5)
        return probabilities @ torch.tensor(list(LEVELS.values()), device=self.device)

    @cached_property
    def _tokens(self) -> tuple[Tensor, Tensor]:
        """Ids of the prompt (L,), and of each level's first token (5,)."""
        ensure_tokenizer(self.where)
        with loading(FLAG, self.where, marker="config.json"):
            named = "tokenizer_class" in get_tokenizer_config(self.where)  # otherwise the class is LLaMA's
            kind = AutoTokenizer if named else LlamaTokenizer
            tokenizer = kind.from_pretrained(self.where, config=LlamaConfig(), trust_remote_code=False)
            texts = (QUESTION, ANSWER, *LEVELS)
            question, answer, *words = (tokenizer.encode(text, add_special_tokens=False) for text in texts)
            prompt = [tokenizer.bos_token_id, *question, IMAGE_TOKEN, *answer]
            levels = [ids[0] for ids in words if ids]
            if max(prompt + levels) >= self.model.config.vocab_size or len(set(levels)) < len(LEVELS):
                raise UserError(
                    f"{self.where}: its tokenizer is not that of the model; copy it from the checkpoint's repository"
                )
        return torch.tensor(prompt, device=self.device), torch.tensor(levels, device=self.device)


def quantizer(quantization: Quantization | None, dtype: torch.dtype) -> Any:
    """Quantization settings for transformers, which rounds linear weights while loading; gradients still pass.

    int8: 255 equal steps per row.  nf4: 16 steps per block of 64 weights (QLoRA, arXiv 2305.14314).
    """
    if quantization is None:
        return None
    if quantization == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    from torchao.quantization import Int8WeightOnlyConfig  # late: an extra

    return TorchAoConfig(Int8WeightOnlyConfig())


def prepare(images: Tensor, side: int) -> Tensor:
    """Pad to a square with CLIP's mean, resize (bicubic) and normalise, as CLIP's processor does with 8-bit images.

    images: (B, 3, H, W) in about [0, 1].  Returns (B, 3, side, side).
    """
    # Centre the image on a square; the released code rounds the mean down to bytes.
    height, width = images.shape[-2:]
    mean, std = (
        torch.tensor(values, device=images.device).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    )
    square = max(height, width)
    top, left = (square - height) // 2, (square - width) // 2
    canvas = ((mean * 255).floor() / 255).expand(len(images), 3, square, square).clone()
    canvas[..., top : top + height, left : left + width] = images

    # Resize, width first as in PIL. Overshoots of bicubic interpolation are clipped to [0, 1] as for 8-bit images, but
    # values of the image itself outside [0, 1] are kept, so that they keep their gradient.
    low, high = (limit.view(-1, 1, 1, 1) for limit in images.flatten(1).aminmax(dim=1))
    pixels = canvas
    for size in ((square, side), (side, side)):
        pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(low.clamp(max=0), high.clamp(min=1))
    return (pixels - mean) / std
