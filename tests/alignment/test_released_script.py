"""The settings of the script released with lbGen: each against the same thing written by hand, and the recipe's values.

The script: vvvvvjdy/lbGen on GitHub, commit cebd517. Its discriminator calls images 1 and texts 0, ours the other way
round; here it is written as there, which is ours with the last layer's signs turned.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from alignment_runs import state_of
from diffusers import DDPMScheduler
from torch import nn
from torch.nn.utils import get_total_norm
from torch.utils.data import BatchSampler
from trajectories import PROMPTS, STEPS, draws, images_of, plain

from lbgen.alignment import batches, loop, run
from lbgen.alignment.config import AlignConfig
from lbgen.configuration.recipes import RECIPES, resolve
from lbgen.configuration.values import shown
from lbgen.configuration.yaml_lines import read_yaml
from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.models import sampling
from lbgen.models.generator import load_generator

OBJECTIVE = {
    "individual_weight": 0.0,
    "quality_weight": 0.0,
    "discriminator_texts": "released-code",
    "discriminator_template": "{name}",
    "normalize_features": False,
}
DEFAULTS = {
    "discriminator_activation": "relu",
    "discriminator_loss_weight": 1.0,
    "discriminator_max_grad_norm": 1e-3,
    "update_first": "discriminator",
}
"""With a norm that clips."""
RELEASED = {
    "discriminator_activation": "leaky-relu",
    "discriminator_loss_weight": 0.5,
    "discriminator_max_grad_norm": 0.0,
    "update_first": "adapter",
}
RATES = {"discriminator_hidden": 3, "learning_rate": 1e-2, "discriminator_learning_rate": 1e-2, "rank": 2}


def by_hand(state, updates):
    """The script's loop in plain torch; of ours it takes the images and the first weights.

    Returns (loss of the adapter, loss of the discriminator, its gradients) of every update, and the discriminator.
    """
    config = state.config
    released = {name: getattr(config, name) == value for name, value in RELEASED.items()}
    first, _, last = state.discriminator.layers
    activation = nn.LeakyReLU(0.2) if released["discriminator_activation"] else nn.ReLU()
    head = nn.Sequential(nn.Linear(first.in_features, 3), activation, nn.Linear(3, 1))
    head.load_state_dict(state.discriminator.layers.state_dict())
    with torch.no_grad():
        for parameter in head[2].parameters():
            parameter.neg_()
    adapter = torch.optim.AdamW(state.parameters, lr=1e-2, betas=(0.9, 0.999), weight_decay=1e-2)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, betas=(0.0, 0.999), weight_decay=1e-2)
    seen = []

    def train_discriminator(features):
        optimizer.zero_grad()
        logits = torch.cat([head(features), head(state.real_features[: len(features)])])
        labels = torch.cat([torch.ones(len(features), 1), torch.zeros(len(features), 1)])
        loss = F.binary_cross_entropy_with_logits(logits, labels)
        if not released["discriminator_loss_weight"]:
            loss = 2 * loss
        loss.backward()
        if not released["discriminator_max_grad_norm"]:
            nn.utils.clip_grad_norm_(head.parameters(), 1e-3)
        optimizer.step()
        return loss.item(), [parameter.grad.clone() for parameter in head.parameters()]

    def train_adapter(features):
        adapter.zero_grad()
        logits = head(features)
        loss = F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))
        loss.backward()
        nn.utils.clip_grad_norm_(state.parameters, 0.1)
        adapter.step()
        state.generator.refresh_sampler()
        return loss.item()

    for batch_index in range(updates):
        features = loop.sample_batch(state, batch_index, differentiate=True).discriminator_features
        if released["update_first"]:
            loss = train_adapter(features)
            seen.append((loss, *train_discriminator(features.detach())))
        else:
            found = train_discriminator(features.detach())
            seen.append((train_adapter(features), *found))
    return seen, head


@pytest.mark.parametrize(
    "changes",
    [{}, *({name: value} for name, value in RELEASED.items()), RELEASED],
    ids=["none", *RELEASED, "all"],
)
def test_updates_equal_the_scripts_loop_in_plain_torch(fresh, changes):
    """Losses, the discriminator's gradients and weights, and the adapter, after three updates."""
    config = fresh(**OBJECTIVE, **{**DEFAULTS, **changes}, **RATES)
    state, twin = state_of(config), state_of(config)
    signs, begun = (1, 1, -1, -1), [parameter.detach().clone() for parameter in state.parameters]
    expected, head = by_hand(twin, 3)
    for batch_index, (adapter_loss, discriminator_loss, gradients) in enumerate(expected):
        metrics = loop.training_step(state, batch_index)
        assert metrics["entire"] == pytest.approx(adapter_loss, rel=1e-4)
        assert metrics["discriminator"] == pytest.approx(discriminator_loss, rel=1e-4)
        for sign, ours, theirs in zip(signs, state.discriminator.parameters(), gradients, strict=True):
            assert torch.allclose(sign * ours.grad, theirs, rtol=1e-3, atol=1e-7)
    for sign, ours, theirs in zip(signs, state.discriminator.parameters(), head.parameters(), strict=True):
        assert torch.allclose(sign * ours, theirs, atol=1e-5)
    moved = [after.detach() - before for after, before in zip(state.parameters, begun, strict=True)]
    error = [(ours - theirs).detach() for ours, theirs in zip(state.parameters, twin.parameters, strict=True)]
    assert get_total_norm(error) < 1e-3 * get_total_norm(moved)  # Adam enlarges the rounding of small gradients


# ---- batches ----


def shards(order, size, process):
    """What accelerate gives a process of 8 of one pass, as its data loaders do."""
    return list(BatchSamplerShard(BatchSampler(order, size, drop_last=False), 8, process))


def test_batches_of_every_process_are_those_of_accelerates_data_loaders():
    """16 updates of 64, then three passes of 32 updates of 32, over 1,000 categories; each pass has its own order."""
    schedule = {"warmup": (16, 64), "whole_passes": True}

    def given(batch_index, process, size):
        positions = range(size * process, size * (process + 1))
        return batches.batch_category_indices(42, batch_index, positions, 32, 1000, **schedule)

    orders = []
    for first, updates, size in ((0, 16, 8), (16, 32, 4), (48, 32, 4), (80, 32, 4)):
        numbers = range(first, first + updates)
        whole = [index for number in numbers for process in range(8) for index in given(number, process, size)]
        order = whole[:1000]
        assert sorted(order) == list(range(1000))
        orders.append(order)
        for process in range(8):
            ours = [given(number, process, size) for number in numbers]
            assert ours == shards(order, size, process)
    assert len(set(map(tuple, orders))) == 4


def test_without_whole_passes_a_larger_warm_up_goes_through_the_categories_too():
    """Every category once a pass, whatever the size of a batch."""
    sizes = [6, 6, *[2] * 9]
    shown = [
        index
        for batch_index, size in enumerate(sizes)
        for index in batches.batch_category_indices(0, batch_index, range(size), 2, 5, warmup=(2, 6))
    ]
    passes = [sorted(shown[first : first + 5]) for first in range(0, len(shown), 5)]
    assert passes == [list(range(5))] * 6


def test_the_warm_up_has_its_own_batch_and_as_many_of_the_first_texts(fresh):
    state = state_of(fresh(**OBJECTIVE, discriminator_warmup_steps=2, discriminator_warmup_batch=4))
    sizes = [len(loop.sample_batch(state, batch_index, differentiate=False).images) for batch_index in range(4)]
    assert sizes == [4, 4, 2, 2]
    assert loop.real_category_indices(state, 1) == [0, 1, 2, 3] and loop.real_category_indices(state, 2) == [0, 1]


def test_gradients_are_checked_on_a_batch_of_the_adapters_size(fresh):
    """Not on the larger one of the warm-up, for which there may be no memory: the norm is that of batch 2."""
    state = state_of(fresh(**OBJECTIVE, discriminator_warmup_steps=2, discriminator_warmup_batch=4))
    logits = state.discriminator(loop.sample_batch(state, 2, differentiate=True).discriminator_features)
    gradients = torch.autograd.grad(F.softplus(-logits).mean(), state.parameters)
    assert loop.measure_gradients(state)["entire"] == pytest.approx(get_total_norm(gradients).item(), rel=1e-4)


def test_batches_of_two_sizes_or_shared_noise_keep_the_size_of_a_process_batch(fresh):
    assert "batch_size" in run.may_change(fresh())
    for change in ({"discriminator_warmup_batch": 4}, {"shared_noise": True}):
        assert "batch_size" not in run.may_change(fresh(**change))
    with pytest.raises(UserError, match="^--discriminator-warmup-batch 4: give 0"):
        fresh(discriminator_warmup_batch=4, independence_weight=1.0)


# ---- noise and precision ----


@pytest.mark.parametrize("shared", [True, False])
def test_one_seed_in_all_processes_gives_all_the_same_noise(fresh, monkeypatch, shared):
    """As two processes that call torch.manual_seed(42) do: the same noise at the same place, another at each place."""
    drawn = []
    draw = sampling.stacked_noise
    monkeypatch.setattr(sampling, "stacked_noise", lambda *arguments: drawn.append(draw(*arguments)) or drawn[-1])
    state = state_of(fresh(shared_noise=shared, max_steps=1))
    shown = []
    for process in (0, 1):
        monkeypatch.setattr(Accelerator, "process_index", process)
        shown.append(loop.local_category_indices(state, 0))
        with torch.no_grad():
            loop.training_images(state, 0)
            loop.training_images(state, 1)
    assert shown[0] != shown[1]
    (first, first_rngs), (later, _), (second, second_rngs), (later_of_second, _) = drawn
    assert torch.equal(first, second) == torch.equal(later, later_of_second) == shared
    assert not torch.equal(first[0], first[1]) and not torch.equal(first, later)
    same = [torch.equal(a.get_state(), b.get_state()) for a, b in zip(first_rngs, second_rngs, strict=True)]
    assert same == [shared] * 2


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_latents_in_the_networks_precision_are_those_of_diffusers(tiny_sd_folder, dtype):
    """Against its own pipeline in half precision, whose latents, guidance and scheduler are in half precision."""
    pipeline = plain(tiny_sd_folder).to(dtype)
    pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    noise, rngs = draws()
    options = {"num_inference_steps": STEPS, "guidance_scale": 2.0, "output_type": "pt"}
    expected = pipeline(PROMPTS, latents=noise.to(dtype), generator=rngs, **options).images

    def images(latent_dtype):
        generator = load_generator(str(tiny_sd_folder), dtype=dtype, scheduler="ddpm", latent_dtype=latent_dtype)
        return images_of(generator).clamp(0, 1).to(dtype)

    assert torch.equal(images(dtype), expected) and not torch.equal(images(torch.float32), expected)


# ---- the recipe ----

REFERENCE = {
    "vocabulary": "imagenet-1k-lbgen",  # training/classnames.txt
    "qualify_names": False,
    "prompt_template": "{name}",  # training/train.py:563
    "discriminator_template": "{name}",  # training/train.py:251
    "text_template": "photo of {name}",  # training/train.py:587
    "generator": "sd15",  # training/scripts/sd15.sh:4
    "semantics": "clip-vit-l-14",  # training/scripts/sd15.sh:16
    "seed": 42,  # training/scripts/sd15.sh:11
    "shared_noise": True,  # training/train.py:66, the same in every process
    "entire_weight": 1.0,  # training/train.py:614, the only term
    "individual_weight": 0.0,
    "quality_weight": 0.0,
    "base_weight": 0.0,
    "independence_weight": 0.0,
    "discriminator_texts": "released-code",  # training/train.py:642
    "normalize_features": False,  # training/train.py:611
    "rank": 128,  # training/scripts/sd15.sh:11
    "alpha": 128.0,  # training/training_utils/pipeline.py:63
    "lora_targets": ("to_q", "to_k", "to_v", "to_out.0"),  # training/training_utils/pipeline.py:65
    "text_encoder_lora": False,  # training/training_utils/arguments.py:307
    "scheduler": "ddpm",  # training/scripts/sd15.sh:12
    "steps": 50,  # training/scripts/sd15.sh:12
    "guidance_scale": 2.0,  # training/training_utils/arguments.py:253
    "guidance_rescale": 0.0,  # training/training_utils/arguments.py:260
    "differentiated_steps": 5,  # training/scripts/sd15.sh:11
    "detach_input": False,  # training/TrainableSDPipeline.py:141
    "gradient_checkpointing": True,  # training/scripts/sd15.sh:9
    "merged_sampler": False,
    "precision": "fp16",  # training/configs/default.yaml:7
    "latent_precision": "network",  # training/TrainableSDPipeline.py:106
    "batch_size": 4,  # training/scripts/sd15.sh:5
    "whole_passes": True,  # training/train.py:280, accelerate's sharding
    "discriminator_warmup_batch": 8,  # training/train.py:246
    "discriminator_warmup_steps": 16,  # training/scripts/sd15.sh:17, one pass
    "max_steps": 96,  # training/scripts/sd15.sh:6, three passes
    "checkpoint_every": 32,  # training/train.py:680, after each pass
    "evaluate_every": 32,
    "learning_rate": 2e-5,  # training/scripts/sd15.sh:7
    "adam_betas": (0.9, 0.999),  # training/training_utils/arguments.py:155
    "weight_decay": 1e-2,  # training/training_utils/arguments.py:157
    "max_grad_norm": 0.1,  # training/scripts/sd15.sh:7
    "ema_decay": 0.0,
    "update_first": "adapter",  # training/train.py:636 and 650
    "discriminator_hidden": 3,  # training/training_utils/gan_model.py:11
    "discriminator_activation": "leaky-relu",  # training/training_utils/gan_model.py:21
    "discriminator_loss_weight": 0.5,  # training/training_utils/gan_model.py:55
    "discriminator_max_grad_norm": 0.0,  # training/train.py:225, a generator that the optimiser uses up
    "discriminator_learning_rate": 1e-5,  # training/scripts/sd15.sh:13
    "discriminator_betas": (0.0, 0.999),  # training/scripts/sd15.sh:13
}
"""Every setting, and where it stands in the script."""


def test_the_recipe_has_every_value_of_the_script():
    recipe = resolve(AlignConfig, "released-code", {})
    assert {name: getattr(recipe, name) for name in REFERENCE} == REFERENCE


def test_the_recipe_says_all_that_it_sets():
    """No value of the script is left to a default, which may change."""
    written = read_yaml(RECIPES / "align/released-code.yaml")
    off = {"base_weight", "independence_weight", "text_encoder_lora", "ema_decay"}
    assert set(written) == set(REFERENCE) - off


def test_a_script_that_clips_an_iterator_which_its_optimiser_has_used_up_does_not_clip():
    """Why the recipe does not clip although 1 is asked for: torch itself, used as the script uses it."""
    layer = nn.Linear(3, 1)
    parameters = layer.parameters()
    torch.optim.AdamW(parameters)
    layer(torch.full((1, 3), 100.0)).sum().backward()
    with pytest.warns(UserWarning, match="empty generator"):
        nn.utils.clip_grad_norm_(parameters, 1.0)
    assert layer.weight.grad.norm() > 100


# ---- the page ----

PAGE = Path(__file__).parents[2] / "docs/reference.md"


def fields_of(columns):
    """Of the table whose first columns are these, the rows about fields: name -> the other cells."""
    _, _, *rows = PAGE.read_text().split(f"\n| {columns} |")[1].split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {first.strip("`"): others for first, *others in cells if first.startswith("`")}


def test_the_page_has_every_setting_and_its_value_in_every_recipe():
    rows = fields_of("field | theirs | line")
    assert set(rows) >= set(REFERENCE) - {"base_weight", "independence_weight", "ema_decay"}
    for column, recipe in enumerate(("released-code", "paper", "microworld", "independent"), 2):
        config = resolve(AlignConfig, recipe, {})
        expected = {name: written(getattr(config, name)) for name in rows}
        assert {name: cells[column] for name, cells in rows.items()} == expected


def test_the_page_has_the_defaults_of_generation():
    rows = fields_of("field | theirs | line of data_gen/sd15gen.py")
    config = GenerateConfig(output="made")
    assert len(rows) >= 10
    assert {name: cells[2] for name, cells in rows.items()} == {name: written(getattr(config, name)) for name in rows}


def written(value):
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else shown(value)
