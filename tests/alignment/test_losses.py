"""Each loss against its closed form in plain Python floats, its gradient against finite differences."""

import math

import pytest
import torch

from lbgen.alignment import losses

B, D = 3, 5


@pytest.fixture
def draw():
    rng = torch.Generator().manual_seed(7)
    return lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_entire_alignment_is_the_mean_of_minus_log_d_of_the_images(draw):
    logits = draw(B)
    expected = sum(-math.log(sigmoid(x)) for x in logits.tolist()) / B
    assert losses.entire_alignment(logits).item() == pytest.approx(expected)


def test_entire_alignment_pushes_images_towards_text_even_when_the_discriminator_wins():
    """Minus one half of the slope of log(1 - D) at D = 1/2, and no vanishing at D = 0, as the minimax form's does."""
    logits = torch.tensor([0.0, -40.0], requires_grad=True)
    (slopes,) = torch.autograd.grad(losses.entire_alignment(logits) * 2, logits)
    assert slopes.tolist() == pytest.approx([-0.5, -1.0])


def test_discriminator_loss_is_minus_the_papers_l_en(draw):
    real, fake = draw(B), draw(B)
    expected = sum(math.log(sigmoid(r)) + math.log(1 - sigmoid(f)) for r, f in zip(real, fake, strict=True)) / B
    assert losses.discriminator_loss(real, fake).item() == pytest.approx(-expected)


def test_individual_alignment_reads_the_diagonal_only():
    """Two rows whose own cosines are 1 and 0.6; the mean of the B x B matrix would be another number."""
    images = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    texts = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert losses.individual_alignment(images, texts).item() == pytest.approx(1 - (1 + 0.6) / 2)
    assert losses.individual_alignment(images, texts.flip(0) * torch.tensor([[1.0], [-1.0]])).item() == pytest.approx(
        1 - (1 - 0.6) / 2
    )


def test_quality_assurance(draw):
    assert losses.quality_assurance(torch.tensor([5.0, 1.0])).item() == pytest.approx(1 - 3 / 5)


def test_base_pull(draw):
    a, b = draw(2, 3, 2, 2), draw(2, 3, 2, 2)
    expected = sum((x - y) ** 2 for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)) / a.numel()
    assert losses.base_pull(a, b).item() == pytest.approx(expected)
    assert losses.base_pull(a, a).item() == 0


@pytest.mark.parametrize(
    "loss, shapes",
    [
        (losses.entire_alignment, [(B,)]),
        (losses.discriminator_loss, [(B,), (B,)]),
        (losses.individual_alignment, [(B, D), (B, D)]),
        (losses.quality_assurance, [(B,)]),
        (losses.base_pull, [(B, D), (B, D)]),
    ],
)
def test_gradients_equal_central_differences(loss, shapes, draw):
    """In every cell of every argument."""
    arguments = [draw(*shape).requires_grad_() for shape in shapes]
    step = 1e-6
    for argument, gradient in zip(arguments, torch.autograd.grad(loss(*arguments), arguments), strict=True):
        assert gradient.abs().max() > 0.01
        cells, slopes = argument.detach().view(-1), gradient.flatten().tolist()
        for cell, slope in enumerate(slopes):
            middle, values = cells[cell].item(), []
            for moved in (middle + step, middle - step, middle):
                cells[cell] = moved
                values.append(loss(*arguments).item())
            assert slope == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-8)
