"""Families whose network is a transformer, against diffusers' own pipelines and loops written out by hand."""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from miniatures import (
    write_flux,
    write_flux_2_klein,
    write_pixart_sigma,
    write_sana,
    write_stable_diffusion_3,
    write_z_image,
)
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from trajectories import PROMPTS, STEPS, TARGETS, adapted, draws, images_of, shake

from lbgen.alignment.config import AlignConfig
from lbgen.errors import UserError
from lbgen.models import adapter
from lbgen.models.checkpoints.suited import suited_settings
from lbgen.models.families.kept_prompts import KeptPrompts
from lbgen.models.families.stable_diffusion_3 import StableDiffusion3
from lbgen.models.generator import Generator, load_generator
from lbgen.models.registry import ADAPTER_FILE
from lbgen.models.sampling import sample

GUIDANCE = 2.0
Network = Callable[..., Any]


# ---- the families: how their pipelines are called, and their trajectories by hand ----


@dataclass(frozen=True)
class Case:
    write: Callable[[Path], Path]
    ours: Mapping[str, Any]
    """Settings of load_generator."""
    theirs: Mapping[str, Any]
    """Settings of the pipeline's call."""
    levels: Callable[[], list[float]] | None
    """Levels of noise by hand, from 1 to 0; None for a diffusion that predicts epsilon."""
    predict: Callable[[Any, Tensor, float, list[str]], Tensor]
    """One call of the bare network: (pipeline, latents, timestep, prompts)."""
    scale: float = GUIDANCE
    """Of classifier-free guidance by two calls."""
    shape: tuple[int, int, int] = (4, 8, 8)
    packs: bool = False
    """Whether the pipeline is given packed latents."""
    flows: bool = True
    unguided: float = 1.0
    """The guidance scale with which the network is called once."""
    takes_dpm: bool = True
    """Whether diffusers' pipeline can use DPM-Solver."""


def predict_pixart_sigma(pipeline: Any, latents: Tensor, timestep: float, prompts: list[str]) -> Tensor:
    tokens = pipeline.tokenizer(
        [prompt.lower() for prompt in prompts], padding="max_length", max_length=300, return_tensors="pt"
    )
    text = pipeline.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
    network = pipeline.transformer
    time, added = torch.tensor([timestep]).expand(len(latents)), {"resolution": None, "aspect_ratio": None}
    both = network(latents, text, time, added, encoder_attention_mask=tokens.attention_mask).sample
    return both.chunk(2, dim=1)[0]


def predict_stable_diffusion_3(pipeline: Any, latents: Tensor, timestep: float, prompts: list[str]) -> Tensor:
    states, pooled = [], []
    for number in ("", "_2"):
        tokenizer, encoder = getattr(pipeline, f"tokenizer{number}"), getattr(pipeline, f"text_encoder{number}")
        tokens = tokenizer(prompts, padding="max_length", max_length=16, return_tensors="pt").input_ids
        output = encoder(tokens, output_hidden_states=True)
        states.append(output.hidden_states[-2])
        pooled.append(output.text_embeds)
    clips = torch.cat(states, dim=-1)  # (B, 16, 16 + 24)
    tokens = pipeline.tokenizer_3(prompts, padding="max_length", max_length=256, return_tensors="pt").input_ids
    text = torch.cat([torch.nn.functional.pad(clips, (0, 8)), pipeline.text_encoder_3(tokens)[0]], dim=1)
    time = torch.tensor([timestep]).expand(len(latents))
    return pipeline.transformer(latents, text, torch.cat(pooled, dim=-1), time).sample


def predict_flux(pipeline: Any, latents: Tensor, timestep: float, prompts: list[str]) -> Tensor:
    tokens = pipeline.tokenizer(prompts, padding="max_length", max_length=16, return_tensors="pt").input_ids
    pooled = pipeline.text_encoder(tokens).pooler_output
    tokens = pipeline.tokenizer_2(prompts, padding="max_length", max_length=512, return_tensors="pt").input_ids
    text, patches = pipeline.text_encoder_2(tokens)[0], torch.nn.functional.pixel_unshuffle(latents, 2)
    places = torch.tensor([[0.0, row, column] for row in range(4) for column in range(4)])
    predicted = pipeline.transformer(
        hidden_states=patches.flatten(2).transpose(1, 2),
        encoder_hidden_states=text,
        pooled_projections=pooled,
        timestep=torch.tensor([timestep / 1000]).expand(len(latents)),
        img_ids=places,
        txt_ids=torch.zeros(512, 3),
        guidance=torch.full((len(latents),), GUIDANCE) if pipeline.transformer.config.guidance_embeds else None,
    ).sample
    return torch.nn.functional.pixel_shuffle(predicted.transpose(1, 2).unflatten(2, (4, 4)), 2)


def qwen_states(pipeline: Any, prompts: list[str], thoughts: str, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Hidden states of those layers side by side, (B, 512, ...), and which of the tokens are no padding."""
    said = [f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{thoughts}" for prompt in prompts]
    tokens = pipeline.tokenizer(said, padding="max_length", max_length=512, return_tensors="pt")
    states = pipeline.text_encoder(**tokens, output_hidden_states=True).hidden_states
    return torch.cat([states[layer] for layer in layers], dim=-1), tokens.attention_mask.bool()


def predict_flux_2_klein(pipeline: Any, latents: Tensor, timestep: float, prompts: list[str]) -> Tensor:
    text, _ = qwen_states(pipeline, prompts, "<think>\n\n</think>\n\n", (9, 18, 27))
    predicted = pipeline.transformer(
        hidden_states=latents.flatten(2).transpose(1, 2),
        encoder_hidden_states=text,
        timestep=torch.tensor([timestep / 1000]).expand(len(latents)),
        img_ids=torch.tensor([[0, row, column, 0] for row in range(4) for column in range(4)]),
        txt_ids=torch.tensor([[0, 0, 0, token] for token in range(512)]),
    ).sample
    return predicted.transpose(1, 2).unflatten(2, (4, 4))


def predict_sana(pipeline: Any, latents: Tensor, timestep: float, prompts: list[str]) -> Tensor:
    tokens = pipeline.tokenizer(
        prompts, padding="max_length", max_length=300, padding_side="right", return_tensors="pt"
    )
    text = pipeline.text_encoder(**tokens).last_hidden_state
    time = torch.tensor([timestep]).expand(len(latents))
    return pipeline.transformer(latents, text, time, encoder_attention_mask=tokens.attention_mask).sample


def predict_z_image(pipeline: Any, latents: Tensor, timestep: float, prompts: list[str]) -> Tensor:
    text, real = qwen_states(pipeline, prompts, "", (-2,))
    time = torch.tensor([1 - timestep / 1000]).expand(len(latents))
    texts = [row[keep] for row, keep in zip(text, real, strict=True)]
    return -torch.stack(pipeline.transformer([each[:, None] for each in latents], time, texts).sample)[:, :, 0]


def levels_of_static_shift() -> list[float]:
    """Stable Diffusion 3's: between the shifted ends, and shifted again by 3."""
    lowest = 3 * 0.001 / (1 + 2 * 0.001)
    even = [1 + (lowest - 1) * number / (STEPS - 1) for number in range(STEPS)]
    return [*(3 * t / (1 + 2 * t) for t in even), 0.0]


def levels_of_dynamic_shift() -> list[float]:
    """FLUX.1's, for 16 patches where 4 have shift 0.5 and 4096 have 1.15."""
    mu = 0.5 + (1.15 - 0.5) * (16 - 4) / (4096 - 4)
    even = [1 + (1 / STEPS - 1) * number / (STEPS - 1) for number in range(STEPS)]
    return [*(math.exp(mu) / (math.exp(mu) + 1 / t - 1) for t in even), 0.0]


def levels_without_shift() -> list[float]:
    return [1 - number / STEPS for number in range(STEPS + 1)]


def levels_of_z_image() -> list[float]:
    return [3 * t / (1 + 2 * t) for t in levels_without_shift()]


def levels_of_flux_2_klein() -> list[float]:
    """Its shift for 16 patches lies on a line through those for 10 and for 200 steps."""
    few, many = 8.73809524e-05 * 16 + 1.89833333, 0.00016927 * 16 + 0.45666666
    mu = few + (many - few) * (STEPS - 10) / 190
    return [math.exp(mu) * t / (math.exp(mu) * t + 1 - t) for t in levels_without_shift()]


FREE = {"use_resolution_binning": False, "clean_caption": False}
CASES = {
    "pixart-sigma": Case(write_pixart_sigma, {}, FREE, None, predict_pixart_sigma, flows=False),
    "sd3": Case(write_stable_diffusion_3, {}, {}, levels_of_static_shift, predict_stable_diffusion_3),
    "flux-dev": Case(
        write_flux, {"true_cfg_scale": 3.0}, {"true_cfg_scale": 3.0, "negative_prompt": ["", ""]},
        levels_of_dynamic_shift, predict_flux, scale=3.0, packs=True, unguided=GUIDANCE,
    ),
    "flux-schnell": Case(
        lambda folder: write_flux(folder, guidance_embeds=False), {"guidance_scale": 1.0}, {"guidance_scale": 1.0},
        levels_without_shift, predict_flux, scale=1.0, packs=True, takes_dpm=False,
    ),
    "flux-2-klein": Case(
        write_flux_2_klein, {}, {}, levels_of_flux_2_klein, predict_flux_2_klein, shape=(16, 4, 4)
    ),
    "sana": Case(write_sana, {}, FREE | {"complex_human_instruction": None}, None, predict_sana),
    "z-image": Case(
        write_z_image, {}, {}, levels_of_z_image, predict_z_image, scale=GUIDANCE + 1, takes_dpm=False
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Path]:
    made: dict[int, Path] = {}

    def folder_of(case: Case) -> Path:
        if id(case) not in made:
            made[id(case)] = case.write(tmp_path_factory.mktemp("miniature"))
        return made[id(case)]

    return folder_of


@pytest.fixture
def folder(case: Case, folders: Callable[[Case], Path]) -> Path:
    return folders(case)


def load(case: Case, folder: Path, **options: Any) -> Generator:
    return load_generator(str(folder), **{"guidance_scale": GUIDANCE, **case.ours, **options})


def plain(folder: Path, **options: Any) -> Any:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def images_of_diffusers(case: Case, pipeline: Any, noise: Tensor | None = None, **options: Any) -> Tensor:
    """Clamped to [0, 1]."""
    drawn, rngs = draws(case.shape)
    noise = drawn if noise is None else noise
    count, _, height, width = noise.shape
    pixels = 32 // case.shape[1]  # of an image for each of its latents
    settings = {"guidance_scale": GUIDANCE, **case.theirs, **options}
    if case.packs:
        noise = pipeline._pack_latents(noise, *noise.shape)
    return pipeline(
        prompt=PROMPTS[:count], latents=noise, generator=rngs[:count], num_inference_steps=STEPS, output_type="pt",
        height=pixels * height, width=pixels * width, **settings,
    ).images  # fmt: skip


def equal(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.clamp(0, 1), theirs, rtol=1e-4, atol=2e-5)
    assert ours.std() > 0.05


# ---- images ----


def test_sampling_equals_the_diffusers_pipeline(case: Case, folder: Path) -> None:
    equal(images_of(load(case, folder)), images_of_diffusers(case, plain(folder)))


@torch.no_grad()
def test_one_image_without_guidance_is_the_pipelines_to_the_bit(case: Case, folder: Path) -> None:
    """The arithmetic is the same there: one prompt, encoded alone, and one row in each call of the network."""
    generator = load(case, folder, guidance_scale=case.unguided, true_cfg_scale=1.0)
    noise, rngs = draws(case.shape)
    ours = sample(generator, generator.encode(PROMPTS[:1]), noise[:1], steps=STEPS, rngs=rngs[:1])
    off = {"guidance_scale": 0.0 if case.write is write_z_image else case.unguided}
    none = {"true_cfg_scale": 1.0, "negative_prompt": None} if "true_cfg_scale" in case.theirs else {}
    assert torch.equal(ours.clamp(0, 1), images_of_diffusers(case, plain(folder), noise[:1], **off, **none))


def test_another_scheduler_equals_the_pipeline_with_it(case: Case, folder: Path) -> None:
    """DPM-Solver++, which every family takes; some of diffusers' pipelines give it settings that it does not know."""
    pipeline, flow = plain(folder), {}
    if case.levels:
        shift = pipeline.scheduler.config.shift
        flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    if not case.takes_dpm:
        difference = images_of(load(case, folder, scheduler="dpm++")) - images_of(load(case, folder))
        assert 1e-4 < difference.abs().mean() < 0.1
        return
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, **flow)
    equal(images_of(load(case, folder, scheduler="dpm++")), images_of_diffusers(case, pipeline))


@pytest.mark.parametrize("kind", ["UniPCMultistep", "DEISMultistep", "DPMSolverSinglestep"])
@pytest.mark.parametrize("name", ["sana", "pixart-sigma"])
def test_a_checkpoints_own_scheduler_is_any_that_diffusers_calls_compatible(
    name: str, kind: str, folders: Callable[[Case], Path], tmp_path: Path
) -> None:
    """Compatible with DPM-Solver++, and able to follow the noise of flows where the network matches them."""
    case, scheduler = CASES[name], f"{kind}Scheduler"
    folder = Path(shutil.copytree(folders(case), tmp_path / "own"))
    own = plain(folder).scheduler
    assert scheduler in {compatible.__name__ for compatible in own.compatibles}
    give_scheduler(folder, getattr(diffusers, scheduler).from_config(own.config))
    equal(images_of(load(case, folder)), images_of_diffusers(case, plain(folder)))


@pytest.mark.parametrize("shift_type", ["exponential", "linear"])
def test_a_solver_shifts_by_size_as_the_pipeline_does(shift_type: str, tmp_path: Path) -> None:
    case, folder = CASES["sd3"], write_stable_diffusion_3(tmp_path, dynamic=True)
    solver = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "time_shift_type": shift_type}
    give_scheduler(folder, UniPCMultistepScheduler.from_config(plain(folder).scheduler.config, **solver))
    assert plain(folder).scheduler.config.use_dynamic_shifting
    equal(images_of(load(case, folder)), images_of_diffusers(case, plain(folder)))

    # A file of the solver alone says nothing of the shift of the largest images.
    give_scheduler(folder, UniPCMultistepScheduler(use_dynamic_shifting=True, **solver))
    assert "max_shift" not in plain(folder).scheduler.config
    equal(images_of(load(case, folder)), images_of_diffusers(case, plain(folder)))


def test_sana_does_not_shift_by_size(folders: Callable[[Case], Path], tmp_path: Path) -> None:
    """Its pipeline gives no mu: a solver goes without, what needs one is refused."""
    case = CASES["sana"]
    folder = Path(shutil.copytree(folders(case), tmp_path / "sana"))
    before = images_of(load(case, folder))
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    change(folder, "scheduler", use_dynamic_shifting=True)
    assert torch.equal(images_of(load(case, folder)), before)
    equal(before, images_of_diffusers(case, plain(folder)))
    give_scheduler(folder, UniPCMultistepScheduler(use_dynamic_shifting=True, **flow))
    assert "does not shift noise by the image's size" in refusal(lambda: load(case, folder))


def give_scheduler(folder: Path, scheduler: Any) -> None:
    index = folder / "model_index.json"
    before = json.loads(index.read_text())["scheduler"][1]
    scheduler.save_pretrained(folder / "scheduler")
    index.write_text(index.read_text().replace(before, type(scheduler).__name__))


@torch.no_grad()
def test_an_oblong_image_equals_the_pipelines(case: Case, folder: Path) -> None:
    generator = load(case, folder)
    noise = torch.randn(1, *generator.latent_shape(32, 64), generator=torch.Generator().manual_seed(3))
    ours = sample(generator, generator.encode(PROMPTS[:1]), noise, steps=STEPS)
    options = {"negative_prompt": ""} if "negative_prompt" in case.theirs else {}
    equal(ours, images_of_diffusers(case, plain(folder), noise, **options))


@pytest.mark.parametrize("options", [{"with_t5": False}, {"dynamic": True}])
def test_stable_diffusion_3_without_t5_and_with_a_shift_by_size(options: dict[str, bool], tmp_path: Path) -> None:
    case, folder = CASES["sd3"], write_stable_diffusion_3(tmp_path, **options)
    lacking = {"text_encoder_3": None, "tokenizer_3": None} if "with_t5" in options else {}
    equal(images_of(load(case, folder)), images_of_diffusers(case, plain(folder, **lacking)))


def test_flux_reads_the_scale_and_needs_no_second_call(folders: Callable[[Case], Path]) -> None:
    case = CASES["flux-dev"]
    alone = {"true_cfg_scale": 1.0}
    ours = [images_of(load(case, folders(case), guidance_scale=scale, **alone)) for scale in (1.0, 5.0)]
    pipeline = plain(folders(case))
    for image, scale in zip(ours, (1.0, 5.0), strict=True):
        equal(image, images_of_diffusers(case, pipeline, guidance_scale=scale, **alone))
    assert (ours[0] - ours[1]).abs().max() > 0.01
    assert load(case, folders(case), **alone).encode(PROMPTS).unconditional is None


def test_sanas_instruction_is_put_before_prompts_where_it_is_asked_for(
    folders: Callable[[Case], Path], tmp_path: Path
) -> None:
    """Not before the empty prompt."""
    case = CASES["sana"]
    folder = folders(case)
    ours = images_of(load(case, folder, pipeline_instruction=True))
    theirs = {name: value for name, value in case.theirs.items() if name != "complex_human_instruction"}
    equal(ours, images_of_diffusers(replace(case, theirs=theirs), plain(folder)))
    assert (ours - images_of(load(case, folder))).abs().max() > 0.01
    message = refusal(lambda: load(CASES["sd3"], folders(CASES["sd3"]), pipeline_instruction=True))
    assert message == "--pipeline-instruction: the pipeline of Stable Diffusion 3 and 3.5 has none; leave it out"


# ---- gradients and the adapter ----


def by_hand(case: Case, pipeline: Any, kept: set[int]) -> Tensor:
    """Euler's steps between levels of noise, or a solver's; a stop-gradient on the prediction of a call not kept."""
    latents, _ = draws(case.shape)
    levels, solver = case.levels() if case.levels else [], None
    if not levels:
        kind = DPMSolverMultistepScheduler if case.flows else DDIMScheduler
        solver = kind.from_config(pipeline.scheduler.config, clip_sample=False)
        solver.set_timesteps(STEPS)
    for index in range(STEPS):
        timestep = int(solver.timesteps[index]) if solver else 1000 * levels[index]
        prediction = case.predict(pipeline, latents, timestep, PROMPTS)
        if case.scale > 1:
            empty = case.predict(pipeline, latents, timestep, [""] * len(PROMPTS))
            prediction = empty + case.scale * (prediction - empty)
        if index not in kept:
            prediction = prediction.detach()
        if solver:
            latents = solver.step(prediction, timestep, latents).prev_sample
        else:
            latents = latents + (levels[index + 1] - levels[index]) * prediction
    return pipeline.vae.decode(scaled_by_hand(pipeline.vae, latents)).sample / 2 + 0.5


def scaled_by_hand(vae: Any, latents: Tensor) -> Tensor:
    if hasattr(vae, "bn"):  # each channel of a patch was normalised
        deviation = (vae.bn.running_var + vae.config.batch_norm_eps) ** 0.5
        latents = latents * deviation[:, None, None] + vae.bn.running_mean[:, None, None]
        return torch.nn.functional.pixel_shuffle(latents, 2)
    return latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0)


def test_gradients_equal_the_loop_with_explicit_stop_gradients(case: Case, folder: Path) -> None:
    scheduler = {"scheduler": None if case.flows else "ddim"}
    generator, kept = adapted(folder, **{"guidance_scale": GUIDANCE, **case.ours, **scheduler}), {1, 3}
    named = generator.adapter_parameters()
    parameters = [parameter for _, parameter in named]
    images = sample(generator, generator.encode(PROMPTS), draws(case.shape)[0], steps=STEPS, differentiate_at=kept)
    expected = by_hand(case, generator.family.pipeline, kept)
    torch.testing.assert_close(images, expected, rtol=1e-3, atol=1e-4)
    ours, theirs = (
        torch.autograd.grad(each.square().mean(), parameters, materialize_grads=True) for each in (images, expected)
    )
    assert sum(each.abs().max() > 0 for each in theirs) > len(theirs) / 2
    for (name, _), one, other in zip(named, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-4 * other.abs().max().item() + 1e-9, msg=name)


def test_the_adapter_gives_the_same_image_in_the_plain_pipeline_and_merged(
    case: Case, folder: Path, tmp_path: Path
) -> None:
    """PixArt's pipeline has no loader; peft reads the same file."""
    generator = adapted(folder, **{"guidance_scale": GUIDANCE, **case.ours})
    generator.save_adapter(tmp_path)
    pipeline, ours = plain(folder), images_of(generator)
    if hasattr(pipeline, "load_lora_weights"):
        pipeline.load_lora_weights(str(tmp_path))
    else:
        weights = load_file(tmp_path / ADAPTER_FILE)
        inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=list(TARGETS)), pipeline.transformer)
        bare = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
        assert not set_peft_model_state_dict(pipeline.transformer, bare).unexpected_keys
    torch.testing.assert_close(ours.clamp(0, 1), images_of_diffusers(case, pipeline), rtol=1e-4, atol=1e-4)
    merged = load(case, folder)
    merged.merge_adapter(tmp_path)
    merged.optimize()
    torch.testing.assert_close(images_of(merged), ours, rtol=1e-3, atol=1e-4)
    assert (ours - images_of(load(case, folder))).abs().max() > 0.01


# ---- prompts ----


class Watched:
    """A family whose text encoders are watched: what is done to them, in order."""

    def __init__(self, family: Any) -> None:
        self.device, self.events, self.inner = torch.device("cpu"), [], family
        self.text_encoders = {"text_encoder": self}

    def to(self, device: Any) -> None:
        self.events.append(str(device))

    def encode(self, prompts: list[str]) -> Any:
        self.events.append(prompts)
        return self.inner.encode(prompts)


@pytest.mark.parametrize("largest", [2**30, 0])
def test_each_prompt_is_encoded_once_with_the_encoders_on_the_device(
    largest: int, folders: Callable[[Case], Path]
) -> None:
    """Kept in memory, or in files; the rows are those of the family's own encoding."""
    family = load(CASES["sd3"], folders(CASES["sd3"])).family
    watched = Watched(family)
    watched.device = torch.device("cpu", 0)
    prompts = KeptPrompts(watched, largest)
    prompts.encode([*PROMPTS, PROMPTS[0]])
    assert watched.events == ["cpu:0", [PROMPTS[0]], [PROMPTS[1]], "cpu"]
    rows = prompts.rows([PROMPTS[1], PROMPTS[0], PROMPTS[1]])
    assert len(watched.events) == 4
    expected = family.encode([PROMPTS[1], PROMPTS[0], PROMPTS[1]])
    for name, tensor in expected.tensors.items():
        torch.testing.assert_close(rows.tensors[name], tensor, rtol=1e-5, atol=1e-6)
    prompts.rows([""])
    assert watched.events[4:] == ["cpu:0", [""], "cpu"]


LONGEST = {"pixart-sigma": 300, "sd3": 16, "flux-dev": 16, "flux-schnell": 16, "sana": 300}


@pytest.mark.parametrize("name", CASES)
def test_too_many_tokens_are_refused_in_the_encoder_with_the_least_room(
    name: str, folders: Callable[[Case], Path]
) -> None:
    """A letter more is a token more in every miniature; chat templates and marks of the ends count too."""
    generator, limit = load(CASES[name], folders(CASES[name])), LONGEST.get(name, 512)
    assert generator.token_limit == limit
    letters = limit - generator.count_tokens("a") + 1
    generator.encode(["a" * letters])
    with pytest.raises(UserError, match=f"is {limit + 1} tokens long, the text encoder reads {limit}; shorten it"):
        generator.encode(["a" * (letters + 1)])


def test_a_prompt_that_only_t5_has_no_room_for_is_refused(
    folders: Callable[[Case], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CLIP's merges make five letters one token."""
    monkeypatch.setattr(StableDiffusion3, "limits", {"tokenizer": None, "tokenizer_3": 10})
    generator = load(CASES["sd3"], folders(CASES["sd3"]))
    generator.encode(["photo"])
    with pytest.raises(UserError, match="photo photo"):
        generator.encode(["photo photo"])


# ---- what is refused ----


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Iterator[Path]:
    yield Path(shutil.copytree(folder, tmp_path / "broken"))


def change(folder: Path, part: str, **settings: Any) -> None:
    path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def refusal(action: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_checkpoints_for_other_uses_are_refused_by_their_configuration(case: Case, folder: Path, broken: Path) -> None:
    """The weights are taken away, since none may be read."""
    for weights in broken.rglob("*.safetensors"):
        weights.write_bytes(b"")
    change(broken, "transformer", in_channels=99)
    assert "transformer has in_channels 99, latents need" in refusal(lambda: load(case, broken))
    change(broken, "transformer", _class_name="OtherTransformer")
    assert "transformer is of class 'OtherTransformer', not" in refusal(lambda: load(case, broken))
    change(broken, "transformer", _class_name=None)
    change(broken, "text_encoder", model_type="bert")
    assert "text_encoder is of type 'bert', not" in refusal(lambda: load(case, broken))


@pytest.mark.parametrize(
    ("name", "part", "settings", "expected"),
    [
        ("pixart-sigma", "transformer", {"use_additional_conditions": True}, "as PixArt-Alpha does"),
        ("pixart-sigma", "transformer", {"caption_channels": 31}, "31 channels (caption_channels), text_encoder give"),
        ("sd3", "transformer", {"pooled_projection_dim": 9}, "text_encoder and text_encoder_2 give 10 + 12"),
        ("sd3", "transformer", {"joint_attention_dim": 9}, "9 channels (joint_attention_dim), text_encoder_3 give"),
        ("sd3", "scheduler", {"_class_name": "DDIMScheduler"}, "its DDIMScheduler is not for flow matching"),
        ("flux-dev", "transformer", {"pooled_projection_dim": 9}, "text_encoder give"),
        ("sana", "transformer", {"guidance_embeds": True}, "reads the guidance scale, as Sana-Sprint does"),
        ("sana", "scheduler", {"use_flow_sigmas": False}, "its DPMSolverMultistepScheduler is not for flow matching"),
        ("sana", "scheduler", {"prediction_type": "epsilon"}, "with use_flow_sigmas and prediction_type flow_predicti"),
        ("z-image", "transformer", {"siglip_feat_dim": 8}, "reads images too, for editing"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused_by_their_configuration(
    name: str, part: str, settings: dict, expected: str, folders: Callable[[Case], Path], tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(folders(CASES[name]), tmp_path / "changed"))
    change(changed, part, **settings)
    assert expected in refusal(lambda: load(CASES[name], changed))


@pytest.mark.parametrize(
    ("kind", "use"),
    [
        ("FluxFillPipeline", "inpainting"),
        ("StableDiffusion3InpaintPipeline", "inpainting"),
        ("FluxControlPipeline", "control images"),
        ("FluxKontextPipeline", "editing images"),
    ],
)
def test_pipelines_that_change_or_follow_an_image_are_refused_by_name(
    kind: str, use: str, folders: Callable[[Case], Path], tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(folders(CASES["flux-dev"]), tmp_path / "changed"))
    index = changed / "model_index.json"
    index.write_text(index.read_text().replace("FluxPipeline", kind))
    message = refusal(lambda: load_generator(str(changed)))
    assert f"is a {kind}, which is for {use}; give a text-to-image checkpoint" in message


def test_schedulers_of_diffusions_are_refused_where_flows_are_matched(case: Case, folder: Path) -> None:
    if not case.flows:
        assert images_of(load(case, folder, scheduler="ddim")).isfinite().all()
        return
    message = refusal(lambda: load(case, folder, scheduler="ddpm"))
    assert "ddpm cannot sample from" in message and "choose --scheduler native, dpm++" in message
    assert torch.equal(images_of(load(case, folder, scheduler="native")), images_of(load(case, folder)))


def test_approximations_of_unets_and_adapters_of_text_encoders_are_refused(case: Case, folder: Path) -> None:
    assert "has a transformer; give 1" in refusal(lambda: load(case, folder, deep_cache_interval=3))
    generator = load(case, folder)
    message = refusal(lambda: generator.add_adapter(2, 2, ("to_q",), text_encoder=True))
    assert message.startswith("--text-encoder-lora: ")


def test_guidance_that_a_checkpoint_does_not_take_is_refused_with_the_reason(
    folders: Callable[[Case], Path], tmp_path: Path
) -> None:
    schnell, dev, sd3 = (CASES[name] for name in ("flux-schnell", "flux-dev", "sd3"))
    message = refusal(lambda: load(schnell, folders(schnell), guidance_scale=3.5))
    reason = "--guidance-scale 3.5: it was distilled to sample without guidance; give 1"
    assert reason in message
    assert load_generator(str(folders(schnell))).encode(["fish"]).unconditional is None
    klein = write_flux_2_klein(tmp_path / "klein", distilled=True)
    assert reason in refusal(lambda: load_generator(str(klein), guidance_scale=3.5))
    assert load_generator(str(klein), guidance_scale=1.0).encode(["fish"]).unconditional is None
    assert suited_settings(str(klein)) == {"scheduler": "native", "guidance_scale": 1.0}
    interval = {"guidance_interval": (0.3, 3.0), "true_cfg_scale": 1.0}
    assert "--guidance-interval" in refusal(lambda: load(dev, folders(dev), **interval))
    assert "--true-cfg-scale 2" in refusal(lambda: load(sd3, folders(sd3), true_cfg_scale=2.0))


def test_sizes_that_the_network_cannot_have_are_refused(case: Case, folder: Path) -> None:
    generator = load(case, folder)
    assert generator.default_size == (32, 32)
    assert "height and width must be multiples of" in refusal(lambda: generator.latent_shape(34, 32))
    if case.write is write_stable_diffusion_3:
        assert "reads at most 64x64" in refusal(lambda: generator.latent_shape(64, 72))


def test_more_steps_than_it_was_trained_on_are_refused(case: Case, folder: Path) -> None:
    assert "was trained on 1000 timesteps; give fewer" in refusal(lambda: load(case, folder).timesteps(1001))


def test_noise_levels_are_the_ratio_of_noise_to_signal(case: Case, folder: Path) -> None:
    """Where flows are matched; guidance within an interval follows them."""
    if case.levels:
        generator = load(case, folder)
        found = [generator.family.noise_level(timestep) for timestep in generator.timesteps(STEPS).timesteps]
        expected = [math.inf, *(level / (1 - level) for level in case.levels()[1:-1])]
        assert found == pytest.approx(expected, rel=1e-4)


# ---- defaults ----


def test_defaults_follow_from_the_generator(folders: Callable[[Case], Path]) -> None:
    found = {name: suited_settings(str(folders(case))) for name, case in CASES.items()}
    own = {"scheduler": "native"}
    assert found["pixart-sigma"] == {} and all(
        found[name] == own for name in ("sd3", "flux-2-klein", "sana", "z-image")
    )
    assert found["flux-dev"] == {"scheduler": "native", "guidance_scale": 3.5}
    assert found["flux-schnell"] == suited_settings("flux-schnell") == {"scheduler": "native", "guidance_scale": 1.0}
    assert suited_settings("flux-dev")["guidance_scale"] == 3.5 and suited_settings("sd15") == {}
    assert (
        suited_settings("flux2-klein-4b")["guidance_scale"] == suited_settings("z-image-turbo")["guidance_scale"] == 1
    )
    assert suited_settings("flux2-klein-base-4b") == suited_settings("z-image") == own


def test_the_default_adapter_sits_on_every_block(case: Case, folder: Path) -> None:
    """Of one stream and of two, and of what refines them; a recipe that names layers keeps them."""
    config = AlignConfig.from_recipe(None, generator=str(folder), vocabulary="microworld")
    generator = load(case, folder)
    generator.add_adapter(2, 2, config.lora_targets)
    network = generator.family.network
    numbered = [(name, part) for name, part in network.named_modules() if name.rpartition(".")[2].isdigit()]
    blocks = {name for name, part in numbered if "Block" in type(part).__name__}
    adapted = {name for name, _ in adapter.layers(network)}
    assert len(blocks) > 1
    assert not [block for block in blocks if not any(name.startswith(f"{block}.") for name in adapted)]
    paper = AlignConfig.from_recipe("paper", generator=str(folder), vocabulary="microworld")
    assert paper.lora_targets == ("to_q", "to_k", "to_v", "to_out.0")


def test_an_adapter_of_the_earlier_default_still_loads(folders: Callable[[Case], Path], tmp_path: Path) -> None:
    """FLUX.2 klein's, which left out the blocks of one stream."""
    case = CASES["flux-2-klein"]
    earlier, later = (load(case, folders(case)) for _ in range(2))
    earlier.add_adapter(2, 3, ("to_q", "to_k", "to_v", "to_out.0"))
    shake(earlier, 6)
    earlier.save_adapter(tmp_path)
    later.load_adapter(tmp_path)
    torch.testing.assert_close(images_of(later), images_of(earlier), rtol=1e-4, atol=1e-5)
