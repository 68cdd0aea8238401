"""Random-weight miniatures of the real architectures, written as the folders their own libraries load.

Weights are drawn larger than the usual initialisation: the layers that training starts at zero are filled too, so that
every output depends on every input and gradients reach every weight.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import (
    Aimv2Config,
    Aimv2Model,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    MetaClip2Config,
    MetaClip2Model,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    XLMRobertaTokenizer,
)

TOKEN_LIMIT = 16
START, END = "<|startoftext|>", "<|endoftext|>"


def write_stable_diffusion(folder: Path, prediction_type: str = "epsilon") -> Path:
    """A Stable Diffusion folder for 32x32 images, latents 4x8x8, 50 k parameters in the UNet.

    Predicting epsilon it has the shape of 1.x; predicting v that of 2.x: linear projections, heads of equal width.
    """
    version_2 = prediction_type == "v_prediction"
    tokenizer = clip_tokenizer()
    text_encoder = CLIPTextModel(CLIPTextConfig(**_text_settings(tokenizer)))
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=(2, 4) if version_2 else 2,
        use_linear_projection=version_2,
        norm_num_groups=4,
    )
    vae = _autoencoder()
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    for seed, module in enumerate((text_encoder, unet, vae)):
        randomize(module, seed)
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def write_stable_diffusion_xl(folder: Path, *, zeros_for_no_prompt: bool = True) -> Path:
    """A Stable Diffusion XL folder for 32x32 images, latents 4x8x8.

    The second text encoder is wider than the first, and its tokenizer knows letters only.
    """
    tokenizer, second = clip_tokenizer(), clip_tokenizer(merges=())
    text = _text_settings(tokenizer)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=16 + 24,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 12,
    )
    parts = {
        "text_encoder": CLIPTextModel(CLIPTextConfig(**text)),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**{**text, "hidden_size": 24}, projection_dim=12)),
        "unet": unet,
        "vae": _autoencoder(scaling_factor=0.13025),
    }
    for seed, module in enumerate(parts.values()):
        randomize(module, seed)
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    StableDiffusionXLPipeline(
        **parts,
        tokenizer=tokenizer,
        tokenizer_2=second,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=zeros_for_no_prompt,
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def write_pixart_sigma(folder: Path) -> Path:
    """A PixArt-Sigma folder for 32x32 images, latents 4x8x8 in patches of 2x2; it predicts a variance too."""
    tokenizer, text_encoder = t5(32)
    parts = {
        "transformer": PixArtTransformer2DModel(
            sample_size=8, num_layers=2, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
            in_channels=4, out_channels=8, caption_channels=32, norm_num_groups=4, use_additional_conditions=False,
        ),
        "vae": _autoencoder(),
        "text_encoder": text_encoder,
    }  # fmt: skip
    for seed, module in enumerate(parts.values()):
        randomize(module, seed)
    scheduler = DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02)
    PixArtSigmaPipeline(**parts, tokenizer=tokenizer, scheduler=scheduler).save_pretrained(folder)
    return folder


def write_stable_diffusion_3(folder: Path, *, with_t5: bool = True, dynamic: bool = False) -> Path:
    """A Stable Diffusion 3.5 folder for 32x32 images, latents 4x8x8 in patches of 2x2.

    dynamic: the shift of its sigmas depends on the image's size.
    """
    tokenizer, second = clip_tokenizer(), clip_tokenizer(merges=())
    text = _text_settings(tokenizer)
    tokenizer_3, encoder_3 = t5(48) if with_t5 else (None, None)
    parts = {
        "transformer": SD3Transformer2DModel(
            sample_size=8, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=48, caption_projection_dim=16, pooled_projection_dim=22, pos_embed_max_size=8,
            dual_attention_layers=(0,), qk_norm="rms_norm",
        ),
        "vae": _autoencoder(scaling_factor=1.5305, shift_factor=0.0609, **NO_CONVOLUTIONS),
        "text_encoder": CLIPTextModelWithProjection(CLIPTextConfig(**text, projection_dim=10)),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**{**text, "hidden_size": 24}, projection_dim=12)),
        "text_encoder_3": encoder_3,
    }  # fmt: skip
    for seed, module in enumerate(parts.values()):
        if module is not None:
            randomize(module, seed)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic, base_image_seq_len=4)
    StableDiffusion3Pipeline(
        **parts, tokenizer=tokenizer, tokenizer_2=second, tokenizer_3=tokenizer_3, scheduler=scheduler
    ).save_pretrained(folder)
    return folder


def write_flux(folder: Path, *, guidance_embeds: bool = True) -> Path:
    """A FLUX.1 folder for 32x32 images, latents 4x8x8 in patches of 2x2: dev, or schnell, which reads no guidance."""
    tokenizer = clip_tokenizer()
    tokenizer_2, encoder_2 = t5(48)
    parts = {
        "transformer": FluxTransformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=48, pooled_projection_dim=16, guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        ),
        "vae": _autoencoder(scaling_factor=0.3611, shift_factor=0.1159, **NO_CONVOLUTIONS),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**_text_settings(tokenizer))),
        "text_encoder_2": encoder_2,
    }  # fmt: skip
    for seed, module in enumerate(parts.values()):
        randomize(module, seed)
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0 if guidance_embeds else 1.0, use_dynamic_shifting=guidance_embeds, base_image_seq_len=4
    )
    FluxPipeline(**parts, tokenizer=tokenizer, tokenizer_2=tokenizer_2, scheduler=scheduler).save_pretrained(folder)
    return folder


def write_flux_2_klein(folder: Path, *, distilled: bool = False) -> Path:
    """A FLUX.2 klein folder for 32x32 images: latents 4x8x8, which the transformer sees as 16x4x4."""
    tokenizer = qwen_tokenizer()
    text_encoder = Qwen3ForCausalLM(Qwen3Config(**_qwen_settings(tokenizer), num_hidden_layers=27))
    parts = {
        "transformer": Flux2Transformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=48, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
        ),
        "vae": AutoencoderKLFlux2(
            latent_channels=4, block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=4, sample_size=32, layers_per_block=1,
        ),
        "text_encoder": text_encoder,
    }  # fmt: skip
    for seed, module in enumerate(parts.values()):
        randomize(module, seed)
    rng = torch.Generator().manual_seed(3)
    norm = parts["vae"].bn
    norm.running_mean.copy_(torch.randn(16, generator=rng))
    norm.running_var.copy_(torch.rand(16, generator=rng) + 0.5)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    Flux2KleinPipeline(**parts, tokenizer=tokenizer, scheduler=scheduler, is_distilled=distilled).save_pretrained(
        folder
    )
    return folder


def write_sana(folder: Path) -> Path:
    """A Sana folder for 32x32 images, latents 4x8x8."""
    words = {word: number for number, word in enumerate(("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"))}
    words |= {word: len(words) + number for number, word in enumerate(_letters())}
    words |= {f"<0x{code:02X}>": len(words) + code for code in range(256)}
    tokenizer = GemmaTokenizer(vocab=words)
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    parts = {
        "transformer": SanaTransformer2DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2,
            num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=16,
            sample_size=8, patch_size=1,
        ),
        "vae": AutoencoderDC(
            latent_channels=4, attention_head_dim=4, encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8), encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1), encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"), encoder_qkv_multiscales=((), (), (5,)),
            decoder_qkv_multiscales=((), (), (5,)), scaling_factor=0.41407,
        ),
        "text_encoder": Gemma2Model(config),
    }  # fmt: skip
    for seed, module in enumerate(parts.values()):
        randomize(module, seed)
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    SanaPipeline(**parts, tokenizer=tokenizer, scheduler=scheduler).save_pretrained(folder)
    return folder


def write_z_image(folder: Path) -> Path:
    """A Z-Image folder for 32x32 images, latents 4x8x8 in patches of 2x2."""
    tokenizer = qwen_tokenizer()
    parts = {
        "transformer": ZImageTransformer2DModel(
            in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
            axes_dims=[4, 6, 6], axes_lens=[1024, 64, 64],
        ),
        "vae": _autoencoder(scaling_factor=0.3611, shift_factor=0.1159, **NO_CONVOLUTIONS),
        "text_encoder": Qwen3Model(Qwen3Config(**_qwen_settings(tokenizer), num_hidden_layers=2)),
    }  # fmt: skip
    for seed, module in enumerate(parts.values()):
        randomize(module, seed)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    ZImagePipeline(**parts, tokenizer=tokenizer, scheduler=scheduler).save_pretrained(folder)
    return folder


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Qwen's tokenizer over single bytes, with its chat template in small."""
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    words = [*special, *sorted(ByteLevel.alphabet())]
    tokenizer = Qwen2Tokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": list(special[1:])})
    tokenizer.chat_template = CHAT
    return tokenizer


def _qwen_settings(tokenizer: Qwen2Tokenizer) -> dict[str, int]:
    return {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8,
    }  # fmt: skip


def t5(width: int) -> tuple[T5Tokenizer, T5EncoderModel]:
    """T5's tokenizer over single letters, and an encoder of that width."""
    words = ["<pad>", "</s>", "<unk>", "\u2581", *(chr(code) for code in range(ord("!"), ord("~") + 1))]
    tokenizer = T5Tokenizer(vocab=[(word, -float(number)) for number, word in enumerate(words)], extra_ids=0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0,
    )  # fmt: skip
    return tokenizer, T5EncoderModel(config)


NO_CONVOLUTIONS = {"use_quant_conv": False, "use_post_quant_conv": False}


def _autoencoder(**settings: float) -> AutoencoderKL:
    """Images 3x32x32, latents 4x8x8."""
    return AutoencoderKL(
        latent_channels=4,
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        sample_size=32,
        **settings,
    )


def write_clip(folder: Path) -> Path:
    """A CLIP folder: 16x16 pixels, 12 dimensions."""
    tokenizer = clip_tokenizer()
    vision = {**_tower(), "image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config=_text_settings(tokenizer), vision_config=vision, projection_dim=12)
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return _write(folder, CLIPModel(config), tokenizer, processor)


def write_siglip(folder: Path) -> Path:
    """A SigLIP folder: 16x16 pixels, 16 dimensions."""
    tokenizer = clip_tokenizer()
    vision = {**_tower(), "image_size": 16, "patch_size": 8}
    config = SiglipConfig(text_config=_text_settings(tokenizer), vision_config=vision)
    return _write(folder, SiglipModel(config), tokenizer, SiglipImageProcessor(size={"height": 16, "width": 16}))


def write_siglip2(folder: Path) -> Path:
    """A SigLIP 2 folder of any aspect ratio: up to 9 patches of 8x8 pixels, 16 dimensions."""
    tokenizer = Siglip2Tokenizer(
        vocab=_letters("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"),
        merges=[],
        padding_side="right",
        add_eos_token=True,
    )
    text = _text_settings(tokenizer)
    vision = {**_tower(), "num_patches": 9, "patch_size": 8}
    processor = Siglip2ImageProcessor(patch_size=8, max_num_patches=9)
    return _write(folder, Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)), tokenizer, processor)


def write_metaclip2(folder: Path) -> Path:
    """A MetaCLIP 2 folder: 16x16 pixels, 12 dimensions, with XLM-R's tokenizer."""
    words = _letters("<s>", "<pad>", "</s>", "<unk>")
    tokenizer = XLMRobertaTokenizer(vocab=[(word, -float(number)) for word, number in words.items()])
    vision = {**_tower(), "image_size": 16, "patch_size": 8}
    text = _text_settings(tokenizer)
    config = MetaClip2Config(text_config=text, vision_config=vision, projection_dim=12)
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return _write(folder, MetaClip2Model(config), tokenizer, processor)


def write_aimv2(folder: Path) -> Path:
    """An AIMv2 folder: 16x16 pixels, 12 dimensions, logit scale limited to 5."""
    tokenizer = clip_tokenizer()
    vision, text = {**_tower(), "image_size": 16, "patch_size": 8}, _text_settings(tokenizer)
    config = Aimv2Config(text_config=text, vision_config=vision, projection_dim=12, max_logit_scale=5.0)
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return _write(folder, Aimv2Model(config), tokenizer, processor)


def _letters(*special: str) -> dict[str, int]:
    """A vocabulary of special tokens, letters, and the mark of a space."""
    words = [*special, "\u2581", *(chr(code) for code in range(ord("!"), ord("~") + 1))]
    return {word: number for number, word in enumerate(words)}


class QAlignParts:
    """What a Q-Align is made of, in transformers' own classes where it has them, with random weights.

    Tokens of images have other keys, values and norms in the language model: those of `for_images`. The abstractor is
    a table of tensors by their names in the released checkpoints.
    """

    def __init__(self) -> None:
        tower = {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 3}
        vision = CLIPVisionConfig(**tower, image_size=28, patch_size=14, layer_norm_eps=1e-6)
        language = {
            **tower,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5,
        }
        self.tokenizer = llama_tokenizer()
        llama = LlamaConfig(**language, vocab_size=len(self.tokenizer), max_position_embeddings=64)
        self.vision = CLIPVisionModel(vision)
        self.language, self.for_images = LlamaForCausalLM(llama), LlamaForCausalLM(llama)
        for seed, part in enumerate((self.vision, self.language, self.for_images)):
            randomize(part.eval().requires_grad_(False), seed, gain=2)
        self.abstractor_config = {"num_learnable_queries": 3, "num_hidden_layers": 2, "num_attention_heads": 2}
        self.abstractor_config |= {
            "hidden_size": 24,
            "encoder_hidden_size": 24,
            "intermediate_size": 12,
            "grid_size": 2,
        }
        self.abstractor = self._abstractor()
        self.config = {**language, "model_type": "mplug_owl2", "vocab_size": len(self.tokenizer)}
        visual = {"visual_model": {**tower, "image_size": 28, "patch_size": 14, "layer_norm_eps": 1e-6}}
        self.config["visual_config"] = visual | {"visual_abstractor": self.abstractor_config}

    def _abstractor(self) -> dict[str, Tensor]:
        shapes = {
            "query_embeds": (1, 3, 24),
            "visual_fc.weight": (32, 24),
            "visual_fc.bias": (32,),
            "vit_eos": (1, 1, 32),
        }
        linear = {"attention.query": (24, 24), "attention.key": (24, 24), "attention.value": (24, 24)}
        linear |= {"output.out_proj": (24, 24), "output.mlp.w1": (12, 24), "output.mlp.w2": (24, 12)}
        linear |= {"output.mlp.w3": (12, 24)}
        norms = {"norm1": 24, "normk": 24, "output.norm2": 24, "output.mlp.ffn_ln": 12}
        for layer in ("encoder.layers.0.crossattention.", "encoder.layers.1.crossattention."):
            shapes |= {f"{layer}attention.q_pos_embed": (3, 24), f"{layer}attention.k_pos_embed": (5, 24)}
            for name, shape in linear.items():
                shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
            shapes |= {f"{layer}{name}.{part}": (n,) for name, n in norms.items() for part in ("weight", "bias")}
        rng = torch.Generator().manual_seed(5)
        return {name: torch.randn(shape, generator=rng) * 0.4 for name, shape in shapes.items()}

    def released(self) -> dict[str, Tensor]:
        """All weights by their names in the released checkpoints."""
        renamed = {f"model.visual_abstractor.{name}": tensor for name, tensor in self.abstractor.items()}
        for name, tensor in self.language.state_dict().items():
            module, _, kind = name.rpartition(".")
            if module.endswith(("k_proj", "v_proj", "layernorm")):
                renamed[f"{module}.multiway.0.{kind}"] = tensor
                renamed[f"{module}.multiway.1.{kind}"] = self.for_images.state_dict()[name]
            else:
                renamed[name] = tensor
        weights = {name.removeprefix("vision_model."): each for name, each in self.vision.state_dict().items()}
        into = "model.vision_model.embeddings."
        renamed[f"{into}cls_token"] = weights.pop("embeddings.class_embedding").view(1, 1, -1)
        renamed[f"{into}position_embedding"] = weights.pop("embeddings.position_embedding.weight")[None]
        renamed[f"{into}patch_embed.weight"] = weights.pop("embeddings.patch_embedding.weight")
        weights = {name.replace("pre_layrnorm", "embeddings.pre_layernorm"): each for name, each in weights.items()}
        changes = {"layer_norm1": "input_layernorm", "layer_norm2": "post_attention_layernorm", "out_proj": "dense"}
        for name in [name for name in weights if "k_proj" in name]:
            heads = [weights.pop(name.replace("k_proj", f"{part}_proj")).unflatten(0, (3, 8)) for part in "qkv"]
            weights[name.replace("k_proj", "query_key_value")] = torch.stack(heads, dim=1).flatten(0, 2)
        for name, tensor in weights.items():
            for old, new in changes.items():
                name = name.replace(old, new)
            renamed[f"model.vision_model.{name}"] = tensor
        return {name: tensor.contiguous().clone() for name, tensor in renamed.items()}


def write_q_align(folder: Path, parts: QAlignParts, shards: int = 1) -> Path:
    """A Q-Align folder for 28x28 pixels, one file of weights, or several and an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(parts.config))
    parts.tokenizer.save_pretrained(folder)
    weights = parts.released()
    names = [f"model-{n:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors" for n in range(shards)]
    weight_map = {name: names[number % shards] for number, name in enumerate(weights)}
    for file in names:
        save_file({n: weights[n] for n, into in weight_map.items() if into == file}, folder / file, {"format": "pt"})
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def llama_tokenizer() -> LlamaTokenizer:
    """LLaMA's tokenizer over single letters; the first letter of a word is one token with the space before it."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{code:02X}>" for code in range(256)), "\u2581", *letters]
    words += [f"\u2581{letter}" for letter in letters]
    vocab = {word: number for number, word in enumerate(words)}
    return LlamaTokenizer(vocab=vocab, merges=[("\u2581", letter) for letter in letters])


MERGES = (("p", "h"), ("ph", "o"), ("t", "o</w>"), ("pho", "to</w>"), ("o", "f</w>"))


def clip_tokenizer(merges: Sequence[tuple[str, str]] = MERGES) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer over single letters, with a few merges; the end token has the highest id."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    return CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)}, merges=list(merges), model_max_length=TOKEN_LIMIT
    )


def randomize(module: nn.Module, seed: int, gain: float = 1.0) -> None:
    """Fill every weight so that signals keep their size from layer to layer: none is zero, none explodes."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            drawn = torch.randn(parameter.shape, generator=rng)
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 25
            parameter.copy_(drawn * gain / fan_in**0.5 + (1 if _is_norm_scale(module, parameter) else 0))


def _is_norm_scale(module: nn.Module, parameter: nn.Parameter) -> bool:
    """The class of a norm without a mean has another name in every model."""
    norms = [child for child in module.modules() if isinstance(child, nn.GroupNorm | nn.LayerNorm)]
    norms += [child for child in module.modules() if type(child).__name__.endswith("RMSNorm")]
    return any(child.weight is parameter for child in norms)


def _tower() -> dict[str, int]:
    return {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def _text_settings(tokenizer: CLIPTokenizer) -> dict[str, int]:
    return {
        **_tower(),
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TOKEN_LIMIT,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _write(folder: Path, model: nn.Module, tokenizer: CLIPTokenizer, processor: object) -> Path:
    randomize(model, seed=3)
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
    for part in (model, tokenizer, processor):
        part.save_pretrained(folder)
    return folder


WRITERS = {
    "sd": write_stable_diffusion,
    "sdxl": write_stable_diffusion_xl,
    "pixart-sigma": write_pixart_sigma,
    "sd3": write_stable_diffusion_3,
    "flux": write_flux,
    "flux-2-klein": write_flux_2_klein,
    "sana": write_sana,
    "z-image": write_z_image,
}
"""Of every family that comes with lbgen."""
