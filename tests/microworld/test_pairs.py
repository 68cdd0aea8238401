"""Pictures of two objects, and the training on them."""

import json

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from lbgen import microworld
from lbgen.microworld import card, corpus, train
from lbgen.microworld.judge import load_judge
from lbgen.microworld.scenes import BIASED, World, render_pairs
from lbgen.microworld.world import CATEGORIES, HOME, SCENES
from lbgen.models.generator import load_generator
from lbgen.models.noise import stacked_noise
from lbgen.models.sampling import render_images

PHOTOS = World(styles=("photo",))


def test_both_objects_are_seen_apart():
    """Their masks share no pixel, the second covers the first but little, and they lie in halves of the picture."""
    images, pairs = corpus.pairs(256, 1, PHOTOS)
    assert images.shape == (256, 3, 64, 64) and pairs.masks.shape == (256, 2, 64, 64)
    assert not (pairs.masks[:, 0] & pairs.masks[:, 1]).any()
    shares = pairs.masks.mean(axis=(2, 3))
    assert shares.min() > 0.03 and 0.9 < shares[:, 0].mean() / shares[:, 1].mean() < 1.1
    rows, columns = np.indices((64, 64))
    area = pairs.masks.sum(axis=(2, 3))
    centres = np.stack([(axis * pairs.masks).sum(axis=(2, 3)) / area for axis in (rows, columns)], axis=2)
    apart = np.abs(np.diff(centres, axis=1)[:, 0])  # (256, 2)
    assert (apart.max(axis=1) > 20).all() and 0.3 < (apart[:, 0] > apart[:, 1]).mean() < 0.7


def test_categories_differ_and_the_scene_is_the_first_ones_home():
    _, pairs = corpus.pairs(1200, 2, BIASED)
    assert (pairs.categories[:, 0] != pairs.categories[:, 1]).all()
    counts = np.bincount(pairs.categories.ravel(), minlength=12)
    assert counts.min() > 120
    homes = np.array([SCENES.index(HOME[name]) for name in CATEGORIES])
    first, second = ((pairs.scenes == homes[pairs.categories[:, place]]).mean() for place in (0, 1))
    assert 0.87 < first < 0.93 and second < 0.3


def test_same_seed_same_pairs():
    categories = np.array([[0, 1], [5, 2]])
    first, again, other = (render_pairs(categories, seed, PHOTOS) for seed in (3, 3, 4))
    assert (first.images == again.images).all() and (first.images != other.images).any()


def test_captions_name_both_in_either_order():
    _, pairs = corpus.pairs(400, 5, BIASED)
    captions = corpus.prompts(pairs, np.random.default_rng(0), dropped=0)
    order = []
    for caption, two in zip(captions, pairs.categories, strict=True):
        places = [caption.find(CATEGORIES[index]) for index in two]
        assert min(places) >= 0 and " and " in caption
        order.append(places[0] < places[1])
    assert 0.4 < np.mean(order) < 0.6


def test_training_starts_from_the_shipped_generator(tmp_path):
    """Which the starting weights are; a step of training changes them; they are written like that one's."""
    start = card.trained_denoiser(tmp_path).eval()
    pipeline = StableDiffusionPipeline.from_pretrained(microworld.GENERATOR, torch_dtype=torch.float32)
    tokens = train.tokenizer()(["cup"], padding="max_length", return_tensors="pt").input_ids
    latents, timestep = torch.randn(1, 4, 16, 16), torch.tensor([500])
    with torch.no_grad():
        expected = pipeline.unet(latents, timestep, pipeline.text_encoder(tokens)[0]).sample
        torch.testing.assert_close(start(latents, timestep, tokens), expected)
    trained = train.train_pairs(tmp_path, 1, card.trained_autoencoder(tmp_path), corpus_size=512, size=4)
    with torch.no_grad():
        assert 0 < (trained(latents, timestep, tokens) - expected).abs().max() < 1
    card.write_pairs(tmp_path, tmp_path / "written")
    files = {path.name for path in (tmp_path / "written").iterdir()}
    assert files == {path.name for path in microworld.GENERATOR.iterdir()}


# ---- the shipped generator ----


def test_the_name_draws_what_plain_diffusers_draws():
    """The shipped folder in StableDiffusionPipeline, from the same noise."""
    generator = load_generator("microworld-pairs", scheduler="ddim", guidance_scale=2.0)
    (image,) = render_images(generator, [("cup", 0, 0)], ["cup and fish"], seed=3, steps=3)
    pipeline = StableDiffusionPipeline.from_pretrained(microworld.PAIRS, torch_dtype=torch.float32)
    noise, _ = stacked_noise(3, [("cup", 0, 0)], (4, 16, 16))
    pixels = pipeline(
        "cup and fish", height=64, width=64, num_inference_steps=3, guidance_scale=2.0, latents=noise, output_type="pt"
    ).images[0]  # fmt: skip
    torch.testing.assert_close(image.clamp(0, 1), pixels, rtol=0, atol=1e-4)


def test_it_has_the_first_generators_autoencoder_and_architecture():
    first, second = (
        load_file(folder / "vae/diffusion_pytorch_model.safetensors")
        for folder in (microworld.GENERATOR, microworld.PAIRS)
    )
    assert all(torch.equal(first[name], second[name]) for name in {*first, *second})
    first, second = (
        json.loads((folder / "unet/config.json").read_text()) for folder in (microworld.GENERATOR, microworld.PAIRS)
    )
    assert first == second


def test_it_draws_what_one_name_asks_for():
    """The micro world's judge, on two images of each category; the card has the figure of fifty."""
    generator = load_generator("microworld-pairs", scheduler="ddim", guidance_scale=2.0)
    names = [name for name in CATEGORIES for _ in range(2)]
    keys = [(name, number, 0) for number, name in enumerate(names)]
    seen = load_judge().verdicts(render_images(generator, keys, names, seed=0, steps=12).clamp(0, 1)).category
    assert sum(CATEGORIES[each] == name for each, name in zip(seen.tolist(), names, strict=True)) >= 22
