"""The linear probe: C is chosen on val; the classifier is then fitted again on train and val, and tested once."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, from_numpy

from lbgen.evaluation.transfer.methods import linear
from lbgen.evaluation.transfer.scores import score
from lbgen.evaluation.transfer.sets.splits import Division, Rows
from lbgen.evaluation.transfer.values import Metric


def linear_probe(features: Tensor, division: Division, metric: Metric) -> tuple[NDArray[np.int64], dict[str, float]]:
    """(n_test,) predicted categories, and the chosen C with its value on val.

    features: (N, D) of all images, on the device and with the precision of the computation.
    """

    def problem(rows: Rows) -> linear.Problem:
        return linear.Problem.of(features[rows], label[rows], int(division.label.max()) + 1)

    label = from_numpy(division.label).to(features.device)
    cost, value = _choose(problem(division.train), features[division.val], division.label[division.val], metric)
    whole = problem(division.final)
    classifier = whole.classifier(linear.solve(whole, cost))
    return classifier.predict(features[division.test]).cpu().numpy(), {"C": cost, "val": value}


def _choose(problem: linear.Problem, val: Tensor, label: Rows, metric: Metric) -> tuple[float, float]:
    """The C with the best value on val; of equal values, the strongest penalty. Each solution starts the next fit."""
    solution, best, best_value = None, 0.0, -1.0
    for cost in linear.COSTS:
        solution = linear.solve(problem, cost, solution)
        value = score(problem.classifier(solution).predict(val).cpu().numpy(), label, metric)
        if value > best_value:
            best, best_value = cost, value
    return best, best_value
