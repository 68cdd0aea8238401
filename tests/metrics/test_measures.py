import math

import numpy as np
import pytest
import torch

from lbgen.metrics.diversity import mean_category_vendi, vendi_score
from lbgen.metrics.information import bits, contingency_table, miller_madow_information, mutual_information
from lbgen.metrics.intervals import bootstrap_intervals
from lbgen.metrics.pixels import brightness, colour_entropy, edge_density, sharpness
from lbgen.metrics.zero_shot import chance_among_first, coinciding_texts, label_agreement, label_ranks


def information_bits(label: np.ndarray, value: np.ndarray) -> float:
    return float(bits(mutual_information(contingency_table(label, value))))


def corrected_bits(label: np.ndarray, value: np.ndarray) -> float:
    return float(bits(miller_madow_information(contingency_table(label, value))))


def test_vendi_counts_orthogonal_and_equal_images():
    """Closed forms: n equal images count as 1, n orthogonal ones as n, whatever their norm."""
    assert vendi_score(torch.ones(7, 5) * 3) == pytest.approx(1)
    assert vendi_score(torch.eye(6) * 4) == pytest.approx(6)
    assert vendi_score(torch.eye(3).repeat(5, 1)) == pytest.approx(3)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_vendi_equals_the_definition(shape):
    """Against numpy's general eigenvalues of the whole n x n kernel."""
    features = np.random.default_rng(0).normal(size=shape)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvals(unit @ unit.T / len(unit)).real
    eigenvalues = eigenvalues[eigenvalues > 1e-12]
    truth = np.exp(-(eigenvalues * np.log(eigenvalues)).sum())
    assert vendi_score(torch.from_numpy(features)) == pytest.approx(truth)


def test_category_vendi_averages_over_categories():
    """One category of two orthogonal images (2) and one of three equal ones (1)."""
    features = torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, 1], [1, 1]])
    assert mean_category_vendi(features, torch.tensor([4, 4, 1, 1, 1])) == pytest.approx(1.5)


def test_edge_density_of_one_step():
    """A black-white step between two columns is seen by exactly the 2 inner columns beside it, of 6."""
    images = torch.zeros(2, 3, 8, 8)
    images[1, :, :, 4:] = 1
    assert edge_density(images).tolist() == pytest.approx([0, 2 / 6])


@pytest.mark.parametrize("slope, share", [(0.09, 0), (0.11, 1)])
def test_edge_density_of_a_ramp(slope, share):
    """Brightness rising by so much a pixel is below or above the threshold of 0.1 everywhere."""
    ramp = (torch.arange(8) * slope).expand(1, 3, 8, 8)
    assert edge_density(ramp).item() == share


def test_colour_entropy_of_known_mixtures():
    """Flat: 0 bits. Four colours in equal shares: 2 bits. Out-of-range values count as the border."""
    images = torch.zeros(2, 3, 4, 4)
    images[1, 0, :2] = 1.7
    images[1, 1, :, :2] = 1.0
    assert colour_entropy(images).tolist() == pytest.approx([0, 2])


def test_information_of_deterministic_and_independent_tables():
    """Closed forms: a function of the label on k equal classes gives log2(k); a product table gives 0."""
    labels = np.arange(60) % 6
    assert information_bits(labels, labels // 2) == pytest.approx(math.log2(3))
    rows, columns = np.divmod(np.arange(20), 5)
    assert information_bits(rows, columns) == pytest.approx(0, abs=1e-12)


def test_information_equals_the_double_sum():
    """Against sum p(x, y) log2(p(x, y) / p(x) p(y)) written out."""
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 4, 50), rng.integers(0, 3, 50)
    truth = 0.0
    for a in range(4):
        for b in range(3):
            joint = np.mean((x == a) & (y == b))
            if joint:
                truth += joint * math.log2(joint / (np.mean(x == a) * np.mean(y == b)))
    assert information_bits(x, y) == pytest.approx(truth)


def test_correction_removes_most_of_the_bias_of_small_samples():
    """Independent uniform draws have 0 bits: the plug-in mean is far above, the corrected one near."""
    rng = np.random.default_rng(0)
    draws = [(np.arange(240) % 12, rng.integers(0, 6, 240)) for _ in range(200)]
    plug_in = np.mean([information_bits(*pair) for pair in draws])
    corrected = np.mean([corrected_bits(*pair) for pair in draws])
    assert plug_in > 0.15
    assert abs(corrected) < 0.03


def test_label_agreement_counts_nearest_texts():
    images = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8], [0.8, 0.6]])
    assert label_agreement(images, torch.eye(2), torch.tensor([0, 1, 0, 0])) == 0.75


def test_a_tie_of_k_texts_is_a_kth_of_an_agreement():
    """The share that a coin tossed at every tie agrees with on average; only strictly nearer texts count for a rank."""
    texts = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    images = torch.tensor([[1.0, 0], [1, 0], [0.8, 0.6], [0.8, 0.6]])
    labels = torch.tensor([0, 1, 1, 2])
    cosines = images @ texts.T
    assert label_ranks(cosines, labels).tolist() == [0, 0, 0, 2]
    assert chance_among_first(cosines, labels).tolist() == [0.5, 0.5, 0.5, 0]
    assert chance_among_first(cosines, labels, first=2).tolist() == [1, 1, 1, 0]
    assert label_agreement(images, texts, labels) == 0.375
    rounded = torch.tensor([[0.5, 0.5 + 1e-7, 0.1]])  # equal texts in different batches
    assert chance_among_first(rounded, torch.tensor([0])).tolist() == [0.5]


def test_a_model_that_knows_no_name_agrees_by_chance():
    """Ten equal texts: a tenth, and not every image."""
    texts, images = torch.eye(4)[[0] * 10], torch.nn.functional.normalize(torch.randn(50, 4), dim=1)
    assert label_agreement(images, texts, torch.arange(50) % 10) == pytest.approx(0.1)
    assert coinciding_texts(torch.eye(4)[[0, 1, 0, 2, 1]]) == [[0, 2], [1, 4]]


def test_bootstrap_interval_of_a_mean_is_the_normal_one():
    """Against mean +- 1.96 standard errors."""
    values = torch.randn(400, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (interval,) = bootstrap_intervals(lambda rows: values[rows].mean().view(1), torch.zeros(400))
    half = 1.96 * values.std().item() / 20
    assert interval.low == pytest.approx(values.mean().item() - half, abs=0.015)
    assert interval.high == pytest.approx(values.mean().item() + half, abs=0.015)


def test_bootstrap_interval_covers_the_true_information():
    """240 images from a known table: nearly all of 40 intervals hold its exact information (nominal 95%)."""
    rng = torch.Generator().manual_seed(3)
    labels = torch.arange(12).repeat_interleave(20)
    shares = torch.full((12, 6), 0.1)
    shares[torch.arange(12), torch.arange(12) % 6] = 0.5
    truth = math.log2(6) + 5 * 0.1 * math.log2(0.1) + 0.5 * math.log2(0.5)
    hits = 0
    for _ in range(40):
        scenes = torch.multinomial(shares[labels], 1, generator=rng).flatten()

        def information(rows, scenes=scenes):
            return torch.tensor([corrected_bits(labels[rows].numpy(), scenes[rows].numpy())])

        ((low, high),) = bootstrap_intervals(information, labels, resamples=100)
        hits += low <= truth <= high
    assert hits >= 34


def test_sharpness_is_one_less_the_blur_metric_of_crete():
    """Against loops over the pixels, with a mean over 11 replicated neighbours; a blurred picture is less sharp."""
    image = np.random.default_rng(0).random((1, 3, 9, 7))
    grey = np.tensordot(np.array([0.299, 0.587, 0.114]), image[0], axes=1)
    shares = []
    for picture in (grey, grey.T):
        length = picture.shape[1]
        kept = lost = 0.0
        for line in picture:
            blurred = [np.mean([line[min(max(i + k, 0), length - 1)] for k in range(-5, 6)]) for i in range(length)]
            for i in range(length - 1):
                before, after = abs(line[i + 1] - line[i]), abs(blurred[i + 1] - blurred[i])
                kept, lost = kept + before, lost + max(0.0, before - after)
        shares.append(lost / kept)
    assert sharpness(torch.from_numpy(image)).item() == pytest.approx(min(shares), abs=1e-6)
    assert brightness(torch.from_numpy(image)).item() == pytest.approx(grey.mean())
    assert sharpness(torch.full((1, 3, 9, 9), 0.5)).item() == 0
