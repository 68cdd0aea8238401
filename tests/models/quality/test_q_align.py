"""Q-Align against transformers' CLIP and LLaMA, PIL, and the numbers of the authors' code."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from alignment_runs import lines
from miniatures import QAlignParts, write_q_align
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from transformers import CLIPImageProcessor, LlamaTokenizer, PreTrainedTokenizerFast

import lbgen
from lbgen.alignment import run
from lbgen.errors import UserError
from lbgen.models.quality.q_align import QAlign, prepare
from lbgen.models.semantics import SemanticSpace, load_semantics
from lbgen.runs.identity import PROVENANCE
from lbgen.runs.parsing import parse_json

KNOWN_ANSWERS = os.environ.get("LBGEN_Q_ALIGN_ANSWERS", "")
"""A folder with a checkpoint and expected.safetensors: what the authors' code computes from it."""
PROMPT = torch.tensor([1, 40, 41, 42, -200, 43, 44])
LEVELS = torch.tensor([300, 310, 305, 320, 290])


@pytest.fixture(scope="module")
def parts() -> QAlignParts:
    return QAlignParts()


@pytest.fixture(scope="module")
def folder(parts: QAlignParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_q_align(tmp_path_factory.mktemp("q-align"), parts)


@pytest.fixture(scope="module")
def space(tiny_clip_folder: Path) -> SemanticSpace:
    return load_semantics(str(tiny_clip_folder))


@pytest.fixture(scope="module")
def scorer(folder: Path, space: SemanticSpace) -> QAlign:
    return lbgen.load_quality(f"q-align:{folder}", space)


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))


# ---- the network ----


class Either(nn.Module):
    """One of two modules for each token, by a mask that is set from outside."""

    def __init__(self, text: nn.Module, image: nn.Module, mask: Tensor) -> None:
        super().__init__()
        self.text, self.image, self.mask = text, image, mask

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.where(self.mask[:, None], self.image(tokens), self.text(tokens))


def reference_logits(parts: QAlignParts, pixel_values: Tensor) -> Tensor:
    """With transformers' vision and language models; the abstractor written out (mPLUG-Owl2, section 3.1)."""
    # What CLIP sees: every token, normalised.
    vision = getattr(parts.vision, "vision_model", parts.vision)
    seen = vision.post_layernorm(parts.vision(pixel_values).last_hidden_state)

    # The abstractor, head by head.
    w, width = parts.abstractor, 12
    queries = w["query_embeds"].expand(len(seen), -1, -1)
    for layer in ("encoder.layers.0.crossattention.", "encoder.layers.1.crossattention."):

        def linear(name: str, x: Tensor, layer: str = layer) -> Tensor:
            return x @ w[f"{layer}{name}.weight"].T + w[f"{layer}{name}.bias"]

        def norm(name: str, x: Tensor, eps: float = 1e-5, layer: str = layer) -> Tensor:
            return F.layer_norm(x, x.shape[-1:], w[f"{layer}{name}.weight"], w[f"{layer}{name}.bias"], eps)

        queries, image = norm("norm1", queries), norm("normk", seen)
        both, places = torch.cat([queries, image], 1), w[f"{layer}attention.q_pos_embed"]
        query = linear("attention.query", queries + places)
        key = linear("attention.key", both + torch.cat([places, w[f"{layer}attention.k_pos_embed"]]))
        value = linear("attention.value", both)
        heads = [slice(start, start + width) for start in (0, width)]
        weights = [(query[..., h] @ key[..., h].mT / width**0.5).softmax(-1) for h in heads]
        attended = torch.cat([weight @ value[..., h] for weight, h in zip(weights, heads, strict=True)], -1)
        queries = queries + linear("output.out_proj", attended)
        hidden = norm("output.norm2", queries)
        hidden = F.silu(linear("output.mlp.w1", hidden)) * linear("output.mlp.w3", hidden)
        queries = queries + linear("output.mlp.w2", norm("output.mlp.ffn_ln", hidden, 1e-6))
    image = queries @ w["visual_fc.weight"].T + w["visual_fc.bias"]
    image = torch.cat([image, w["vit_eos"].expand(len(image), -1, -1)], 1)

    # The language model; tokens of the image go through the modules for images.
    language = QAlignParts().language
    embed = language.get_input_embeddings()
    texts = [embed(ids).expand(len(image), -1, -1) for ids in (PROMPT[:4], PROMPT[5:])]
    tokens = torch.cat([texts[0], image, texts[1]], 1)
    mask = torch.zeros(tokens.shape[1], dtype=torch.bool)
    mask[4 : 4 + image.shape[1]] = True
    for layer, other in zip(language.model.layers, parts.for_images.model.layers, strict=True):
        for owner, name in ((layer.self_attn, "k_proj"), (layer.self_attn, "v_proj")):
            setattr(owner, name, Either(getattr(owner, name), getattr(other.self_attn, name), mask))
        for name in ("input_layernorm", "post_attention_layernorm"):
            setattr(layer, name, Either(getattr(layer, name), getattr(other, name), mask))
    return language(inputs_embeds=tokens).logits[:, -1, LEVELS]


def test_logits_and_their_gradient_equal_transformers_own_parts(
    parts: QAlignParts, scorer: QAlign, pixels: Tensor
) -> None:
    """CLIPVisionModel and LlamaForCausalLM, with the modality-adaptive modules put in by a mask."""
    results = []
    for logits_of in (lambda x: scorer.model.level_logits(x, PROMPT, LEVELS), lambda x: reference_logits(parts, x)):
        given = pixels.clone().requires_grad_()
        logits = logits_of(given)
        (gradient,) = torch.autograd.grad((logits.softmax(-1) @ torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])).sum(), given)
        results.append((logits.detach(), gradient))
    (logits, gradient), (expected, expected_gradient) = results
    assert expected.std() > 0.1 and expected_gradient.abs().max() > 1e-4
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-4 * expected_gradient.abs().max().item())


@pytest.mark.skipif(not KNOWN_ANSWERS, reason="LBGEN_Q_ALIGN_ANSWERS names no folder")
def test_logits_score_and_gradient_equal_the_authors_code(space: SemanticSpace) -> None:
    expected = load_file(Path(KNOWN_ANSWERS, "expected.safetensors"))
    scorer = lbgen.load_quality(f"q-align:{KNOWN_ANSWERS}", space)
    pixel_values = expected["pixel_values"].requires_grad_()
    logits = scorer.model.level_logits(pixel_values, expected["input_ids"], expected["level_token_ids"])
    score = logits.softmax(-1) @ torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    (gradient,) = torch.autograd.grad(score.sum(), pixel_values)
    torch.testing.assert_close(logits, expected["logits"], rtol=0, atol=3e-5)
    torch.testing.assert_close(score, expected["score"], rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, expected["gradient"], rtol=0, atol=1e-5)


def test_a_checkpoint_of_several_files_is_the_same(
    parts: QAlignParts, scorer: QAlign, space: SemanticSpace, pixels: Tensor, tmp_path: Path
) -> None:
    sharded = lbgen.load_quality(f"q-align:{write_q_align(tmp_path, parts, shards=3)}", space)
    logits = [each.model.level_logits(pixels, PROMPT, LEVELS) for each in (sharded, scorer)]
    assert torch.equal(*logits)


def test_half_precision_is_near_single_precision(
    folder: Path, scorer: QAlign, tiny_clip_folder: Path, pixels: Tensor
) -> None:
    half = lbgen.load_quality(f"q-align:{folder}", load_semantics(str(tiny_clip_folder), dtype=torch.bfloat16))
    images = pixels.sigmoid().requires_grad_()
    score = half.score(images)
    assert half.model.dtype == torch.bfloat16 and score.dtype == torch.float32
    torch.testing.assert_close(score, scorer.score(images), rtol=0, atol=0.1)
    score.sum().backward()
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.abs().max() > 0


def test_activations_are_computed_again_and_not_kept(scorer: QAlign, pixels: Tensor) -> None:
    """Autograd keeps the pixels and the tokens between the layers, and nothing from within a layer."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.requires_grad:  # weights do not
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scorer.model.level_logits(pixels.requires_grad_(), PROMPT, LEVELS)
    between_layers = 2 * (3 * 5 * 24 + 3 * 3 * 24 + 3 * 10 * 32)  # images * (vision + abstractor + language)
    assert 0 < sum(kept.values()) < pixels.numel() + between_layers


def test_weights_that_are_pickled_can_be_converted_as_the_page_says(
    parts: QAlignParts, scorer: QAlign, space: SemanticSpace, pixels: Tensor, tmp_path: Path
) -> None:
    """Two .bin files; the page's own lines."""
    folder = write_q_align(tmp_path, parts)
    (folder / "model.safetensors").unlink()
    for number, names in enumerate((list(parts.released())[::2], list(parts.released())[1::2])):
        torch.save({name: parts.released()[name] for name in names}, folder / f"pytorch_model-{number}-of-2.bin")
    with pytest.raises(UserError, match="which may run code and is never loaded"):
        lbgen.load_quality(f"q-align:{folder}", space)
    page = Path(__file__).parents[3] / "docs" / "models.md"
    (lines,) = re.findall(r"```python\n(import torch\n.*?)```", page.read_text(), re.DOTALL)
    exec(lines, {"folder": folder})
    converted = lbgen.load_quality(f"q-align:{folder}", space)
    assert torch.equal(*(each.model.level_logits(pixels, PROMPT, LEVELS) for each in (converted, scorer)))


# ---- from pixels to the score ----


@pytest.mark.parametrize(("height", "width"), [(28, 28), (64, 64), (40, 61), (61, 40), (9, 20)])
def test_images_are_prepared_as_by_the_released_code(height: int, width: int) -> None:
    """PIL: pad to a square with CLIP's mean in bytes, then CLIP's processor; up to its rounding to 8 bits."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    processor = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    square = max(height, width)
    canvas = Image.new("RGB", (square, square), tuple(int(value * 255) for value in processor.image_mean))
    canvas.paste(image, ((square - width) // 2, (square - height) // 2))
    expected = processor(canvas, return_tensors="pt").pixel_values
    prepared = prepare(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255, 28)
    assert (prepared - expected).abs().max() < 1.5 / 255 / 0.26


def test_the_score_is_the_expected_level(scorer: QAlign) -> None:
    """The prompt's tokens from the tokenizer's vocabulary, letter by letter."""
    tokenizer, images = QAlignParts().tokenizer, torch.rand(2, 3, 20, 33, generator=torch.Generator().manual_seed(2))
    vocabulary = tokenizer.get_vocab()

    def ids(text: str) -> list[int]:
        """The first letter of every word is one token with the space before it."""
        found, pieces = [], f" {text}"
        while pieces:
            piece = pieces[:2] if pieces[0] == " " and pieces[1] != "\n" else pieces[:1]
            name = "<0x0A>" if piece == "\n" else piece.replace(" ", "\u2581")
            found, pieces = [*found, vocabulary[name]], pieces[len(piece) :]
        return found

    question = ids("USER: How would you rate the quality of this image?\n")
    prompt = [1, *question, -200, *ids("\nASSISTANT: The quality of the image is")]
    levels = [vocabulary[f"\u2581{letter}"] for letter in "egfpb"]
    logits = scorer.model.level_logits(prepare(images, 28), torch.tensor(prompt), torch.tensor(levels))
    weights = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    expected = 5 * weights[:, 0] + 4 * weights[:, 1] + 3 * weights[:, 2] + 2 * weights[:, 3] + weights[:, 4]
    torch.testing.assert_close(scorer.score(images), expected)
    assert torch.equal(scorer.score(images, torch.zeros(2, 12)), scorer.score(images))


def test_the_scores_gradient_equals_finite_differences(scorer: QAlign) -> None:
    """Along the gradient, for an image that is not square and partly outside [0, 1]; nothing else has a gradient."""
    images = (1.4 * torch.rand(2, 3, 20, 33, generator=torch.Generator().manual_seed(3)) - 0.2).requires_grad_()
    (gradient,) = torch.autograd.grad(scorer.score(images).sum(), images)
    for part in (images > 1, images < 0, torch.ones_like(images, dtype=torch.bool)):
        direction = gradient * part / (gradient * part).norm()
        with torch.no_grad():
            after, before = (scorer.score(images + step * direction).sum() for step in (5e-3, -5e-3))
        slope = ((after - before) / 1e-2).item()
        assert slope > 0 and slope == pytest.approx((gradient * direction).sum().item(), rel=0.03)
    assert not scorer.model.training and all(not weight.requires_grad for weight in scorer.model.parameters())


def test_the_prompt_of_a_sentencepiece_tokenizer(folder: Path, space: SemanticSpace, tmp_path: Path) -> None:
    """Against the sentencepiece library: text and image apart, no second start token."""
    sentencepiece = pytest.importorskip("sentencepiece")
    texts = ["USER: How would you rate the quality of this image?\n", "\nASSISTANT: The quality of the image is"]
    words = ["excellent", "good", "fair", "poor", "bad"]
    shutil.copytree(folder, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts, " ".join(words)] * 9), model_prefix=str(tmp_path / "model/tokenizer"),
        vocab_size=380, model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "model/tokenizer.model"))
    for settings in (None, {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}):  # as released
        if settings:
            (tmp_path / "model/tokenizer_config.json").write_text(json.dumps(settings))
        prompt, levels = lbgen.load_quality(f"q-align:{tmp_path / 'model'}", space)._tokens
        assert prompt.tolist() == [1, *library.encode(texts[0]), -200, *library.encode(texts[1])]
        assert levels.tolist() == [library.encode(word)[0] for word in words]


def test_a_tokenizer_of_another_class_is_read_as_what_it_is(folder: Path, space: SemanticSpace, tmp_path: Path) -> None:
    """Whole words, against their numbers; the start token is added once."""
    copy = shutil.copytree(folder, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    question, answer = "USER: How would you rate the quality of this image?", "ASSISTANT: The quality of the image is"
    named = "excellent good fair poor bad"
    words = list(dict.fromkeys(f"<unk> <s> {question} {answer} {named}".split()))
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>").save_pretrained(copy)
    prompt, levels = lbgen.load_quality(f"q-align:{copy}", space)._tokens
    read = [words[id] if id >= 0 else "IMAGE" for id in prompt.tolist()]
    assert " ".join(read) == f"<s> {question} IMAGE {answer}"
    assert " ".join(words[id] for id in levels) == named


def test_no_code_of_a_checkpoint_runs(folder: Path, space: SemanticSpace, tmp_path: Path) -> None:
    """The released one names modules of its own for everything."""
    copy, ran = Path(shutil.copytree(folder, tmp_path / "model")), tmp_path / "ran"
    for module in ("modeling", "tokenization"):
        (copy / f"{module}_own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
    for file, names in (("config.json", ("AutoConfig", "AutoModelForCausalLM")), ("tokenizer_config.json", ())):
        settings = json.loads((copy / file).read_text())
        settings["auto_map"] = dict.fromkeys(names, "modeling_own.Own") or {
            "AutoTokenizer": ["tokenization_own.Own", None]
        }
        (copy / file).write_text(json.dumps(settings))
    scorer = lbgen.load_quality(f"q-align:{copy}", space)
    assert scorer.score(torch.rand(1, 3, 8, 8)).shape == (1,) and not ran.exists()


# ---- runs, and what is refused ----


def test_a_run_trains_on_it_and_records_its_weights(folder: Path, fresh, tmp_path: Path) -> None:
    """All three terms reach the adapter; the run is not continued with other weights."""
    copy = Path(shutil.copytree(folder, tmp_path / "scorer"))
    config = fresh(quality=f"q-align:{copy}", quality_weight=10.0, max_steps=1)
    run.align(config)
    norms = lines(config.folder / "metrics.jsonl")[0]["gradient_norms"]
    assert all(norms[name] > 0 for name in ("entire", "individual", "quality"))
    recorded = parse_json((config.folder / PROVENANCE).read_bytes())
    assert recorded["quality_sha256"].startswith("v2:")
    weights = load_file(copy / "model.safetensors")
    save_file({**weights, "model.norm.weight": weights["model.norm.weight"] + 1}, copy / "model.safetensors")
    with pytest.raises(UserError, match="made with quality_sha256 v2:.*; restore the quality that it was made with"):
        run.align(replace(config, max_steps=2))


def test_folders_that_hold_no_q_align_are_refused(
    folder: Path, space: SemanticSpace, tiny_clip_folder: Path, tmp_path: Path
) -> None:
    def refusal(where: Path, use=lambda scorer: None) -> str:
        with pytest.raises(UserError) as caught:
            use(lbgen.load_quality(f"q-align:{where}", space))
        assert str(where) in str(caught.value) and "\n" not in str(caught.value)
        return str(caught.value)

    assert "has no config.json" in refusal(tmp_path)
    assert "is of a model of type 'clip'" in refusal(tiny_clip_folder)
    assert "there is no such folder" in refusal(tmp_path / "nowhere")
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))

    # Its tokenizer is missing, or another's.
    def score(scorer: QAlign) -> None:
        scorer.score(torch.rand(1, 3, 28, 28))

    (broken / "tokenizer.json").unlink()
    assert "has no tokenizer.model or tokenizer.json" in refusal(broken, score)
    LlamaTokenizer(vocab={"<unk>": 0, "<s>": 1, "</s>": 2}).save_pretrained(broken)
    assert "its tokenizer is not that of the model" in refusal(broken, score)

    # Its weights are not all there, or in a form that may run code.
    weights = load_file(broken / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    assert "lacks the weight lm_head.weight" in refusal(broken)
    (broken / "model.safetensors").rename(broken / "pytorch_model-00001-of-00002.bin")
    assert "which may run code and is never loaded" in refusal(broken)
