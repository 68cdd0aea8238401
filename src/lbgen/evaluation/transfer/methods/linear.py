"""Multinomial logistic regression on frozen features, solved by L-BFGS.

The objective is that of scikit-learn's LogisticRegression: C * sum of cross-entropies + |weight|^2 / 2, without a
penalty on the bias. With two categories scikit-learn has one row of weights, the difference of the two rows here.
"""

from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

COSTS = tuple(float(cost) for cost in 1 / np.logspace(5, -6, 45))
"""The 45 values of C that are tried (SynCLR, arXiv 2312.17742), strongest penalty first."""
ITERATIONS = 1000
"""Most iterations of L-BFGS."""
HISTORY = 10
TOLERANCE = 1e-6
"""Tolerance for the largest entry of the mean loss's gradient; a step below rounding noise also ends the search."""


class Classifier(NamedTuple):
    weight: Tensor
    """(K, D)"""
    bias: Tensor
    """(K,)"""

    def predict(self, features: Tensor) -> Tensor:
        """(N, D) features -> (N,) category indices."""
        return (features.to(self.weight) @ self.weight.T + self.bias).argmax(dim=1)


class Problem(NamedTuple):
    """Training rows in coordinates in which L-BFGS needs few iterations.

    Rows are centred and rotated to their principal axes. The solution is equivalent: the bias compensates for the
    centring, and the rotation does not change the penalty. Axes without variance are left out; their weights would be
    zero because of the penalty.
    """

    rows: Tensor
    """(N, R)"""
    label: Tensor
    """(N,) category indices"""
    categories: int
    centre: Tensor
    """(D,)"""
    axes: Tensor
    """(D, R), orthonormal columns"""

    @classmethod
    def of(cls, features: Tensor, label: Tensor, categories: int) -> Self:
        centre = features.mean(dim=0)
        rows = features - centre
        if len(rows) > rows.shape[1]:
            axes = torch.linalg.eigh(rows.T @ rows).eigenvectors
        else:
            _, lengths, turned = torch.linalg.svd(rows, full_matrices=False)
            axes = turned[lengths > lengths[0] * torch.finfo(rows.dtype).eps * rows.shape[1]].T
        return cls(rows @ axes, label, categories, centre, axes)

    def start(self) -> Tensor:
        """(K, R + 1) zeros: weights and bias on the axes."""
        return self.rows.new_zeros(self.categories, self.rows.shape[1] + 1)

    def classifier(self, solution: Tensor) -> Classifier:
        """The solution in the original coordinates of the features."""
        weight = solution[:, :-1] @ self.axes.T
        return Classifier(weight, solution[:, -1] - weight @ self.centre)


def solve(problem: Problem, cost: float, start: Tensor | None = None) -> Tensor:
    """Minimise the objective for one C from `start`, (K, R + 1); returns a tensor of the same shape.

    The problem is convex, so `start` affects only the number of iterations. Axes are scaled to make the curvature of
    the objective about the same along all of them, for equal probabilities of all categories.
    """
    # The objective in scaled coordinates; the bias is the weight of a column of ones.
    penalty = (2 if problem.categories == 2 else 1) / (cost * len(problem.label))
    stretch = (problem.rows.square().mean(dim=0) / problem.categories + penalty).rsqrt()  # (R,)
    stretch = torch.cat([stretch, stretch.new_tensor([problem.categories**0.5])])  # (R + 1,)
    rows = F.pad(problem.rows, (0, 1), value=1.0) * stretch  # (N, R + 1)
    penalties = F.pad(penalty * stretch[:-1].square(), (0, 1))  # (R + 1,), 0 for the bias
    truth = F.one_hot(problem.label, problem.categories).to(rows)  # (N, K)
    point = (problem.start() if start is None else start) / stretch  # (K, R + 1)
    point.grad = torch.zeros_like(point)

    def closure() -> Tensor:
        """The objective at `point`; its gradient in closed form, which is faster than autograd for small problems."""
        log_probabilities = (rows @ point.T).log_softmax(dim=1)  # (N, K)
        shrinking = penalties * point
        torch.addmm(shrinking, (log_probabilities.exp() - truth).T, rows, alpha=1 / len(rows), out=point.grad)
        return (shrinking * point).sum() / 2 - (truth * log_probabilities).sum() / len(rows)

    torch.optim.LBFGS(
        [point], max_iter=ITERATIONS, history_size=HISTORY, line_search_fn="strong_wolfe",
        tolerance_grad=TOLERANCE, tolerance_change=torch.finfo(rows.dtype).eps,
    ).step(closure)  # fmt: skip
    return point * stretch


def fit(features: Tensor, label: Tensor, categories: int, cost: float) -> Classifier:
    """The classifier of (N, D) features and (N,) category indices below `categories`, for one C."""
    problem = Problem.of(features, label, categories)
    return problem.classifier(solve(problem, cost))
