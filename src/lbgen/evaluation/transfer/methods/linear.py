"""Multinomial logistic regression on frozen features, solved by L-BFGS.

Minimised is what scikit-learn's LogisticRegression minimises: C * sum of cross-entropies + |weight|^2 / 2, where the
bias has no penalty. With two categories scikit-learn has one row of weights, the difference of the two here.
"""

from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

COSTS = tuple(float(cost) for cost in 1 / np.logspace(5, -6, 45))
"""The 45 values of C that are tried (SynCLR, arXiv 2312.17742), the strongest penalty first."""
ITERATIONS = 1000
"""Of L-BFGS, at most."""
HISTORY = 10


class Classifier(NamedTuple):
    weight: Tensor
    """(K, D)"""
    bias: Tensor
    """(K,)"""

    def predict(self, features: Tensor) -> Tensor:
        """(N, D) features -> (N,) category indices."""
        return (features.to(self.weight) @ self.weight.T + self.bias).argmax(dim=1)


class Problem(NamedTuple):
    """Training rows, centred and divided by one number, which the unpenalised bias and the penalty make up for.

    The solution is that of the rows themselves; L-BFGS reaches it in fewer iterations.
    """

    rows: Tensor
    """(N, D)"""
    label: Tensor
    """(N,) category indices"""
    categories: int
    centre: Tensor
    """(D,)"""
    scale: Tensor
    """()"""

    @classmethod
    def of(cls, features: Tensor, label: Tensor, categories: int) -> Self:
        centre = features.mean(dim=0)
        rows = features - centre
        scale = rows.square().mean().sqrt().clamp_min(torch.finfo(rows.dtype).tiny)
        return cls(rows / scale, label, categories, centre, scale)

    def start(self) -> Tensor:
        """(K, D + 1) zeros: weights and bias of the scaled rows."""
        return self.rows.new_zeros(self.categories, self.rows.shape[1] + 1)

    def classifier(self, solution: Tensor) -> Classifier:
        """The solution for features as they are."""
        weight = solution[:, :-1] / self.scale
        return Classifier(weight, solution[:, -1] - weight @ self.centre)


def solve(problem: Problem, cost: float, start: Tensor | None = None) -> Tensor:
    """Minimise the objective for one C from `start`, (K, D + 1); returns a tensor of the same shape.

    The problem is convex: `start` decides only how soon the solution is reached.
    """
    solution = (problem.start() if start is None else start.clone()).requires_grad_()
    rows = len(problem.label)
    penalty = (2 if problem.categories == 2 else 1) / (2 * cost * rows * problem.scale.item() ** 2)
    optimizer = torch.optim.LBFGS(
        [solution], max_iter=ITERATIONS, history_size=HISTORY, line_search_fn="strong_wolfe",
        tolerance_grad=1e-7, tolerance_change=1e-12,
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        weight, bias = solution[:, :-1], solution[:, -1]
        logits = torch.addmm(bias, problem.rows, weight.T)  # (N, K)
        loss = F.cross_entropy(logits, problem.label) + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return solution.detach()


def fit(features: Tensor, label: Tensor, categories: int, cost: float) -> Classifier:
    """The classifier of (N, D) features and (N,) category indices below `categories`, for one C."""
    problem = Problem.of(features, label, categories)
    return problem.classifier(solve(problem, cost))
