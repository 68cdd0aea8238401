"""Paired tests of two backbones that answered the same images, or the same draws of few images.

All images: the difference of the two values with a stratified bootstrap over the images, and McNemar's exact test for
accuracy. Its null hypothesis is that the two answers to every image are exchangeable; for the mean per class the same
hypothesis is tested by random exchanges. Few shots: Student's paired test over the draws. Averages over data sets: a
t-test with the degrees of freedom of Welch (1947) and Satterthwaite (1946).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbgen.errors import UserError
from lbgen.evaluation.transfer.scores import BOOTSTRAP_SEED, score_right
from lbgen.evaluation.transfer.stored import StoredAnswers, load_answers
from lbgen.evaluation.transfer.values import Metric, Value
from lbgen.metrics import intervals
from lbgen.metrics.intervals import Estimate, benjamini_hochberg
from lbgen.metrics.paired_tests import exchange_test, mcnemar, normal_p, paired_t_of, student

LIMITS = (-1.0, 1.0)
VALUE_TOLERANCE = 1e-6
"""Tolerance between a stored value and the value of its answers."""

ResultKey = tuple[str, str]
"""Data set and method."""


class Trainings(NamedTuple):
    """The trainings behind one value of detection or segmentation."""

    draws: Sequence[float]
    """The value of every training."""
    resampled: Sequence[float]
    """For a single training, its values on bootstraps over the test images, which are the same for all backbones."""


@dataclass(frozen=True)
class MeasuredBackbone:
    """The results of one backbone."""

    name: str
    values: dict[ResultKey, Value]
    answers: dict[ResultKey, Path]
    """Files of answers, which may have been removed."""
    trainings: dict[ResultKey, Trainings] = field(default_factory=dict)
    data_hashes: dict[ResultKey, str | None] = field(default_factory=dict)
    """Hash of all images, including training images, and of their labels; None if it was not recorded."""
    seed: int | None = None
    """Seed of the first draw of few images, or of the first training; None if it was not recorded."""

    def datasets(self, method: str) -> list[str]:
        return [dataset for dataset, other in self.values if other == method]

    def average(self, method: str, datasets: Sequence[str]) -> float:
        """Mean of the values over data sets; NaN if a value is missing."""
        found = [self.values[dataset, method].value for dataset in datasets if (dataset, method) in self.values]
        return sum(found) / len(found) if found and len(found) == len(datasets) else math.nan


class Difference(NamedTuple):
    """A backbone's value minus the reference's on one data set, or averaged over several."""

    backbone: str
    dataset: str
    """AVERAGE for the mean over the data sets that both have."""
    method: str
    estimate: Estimate
    p_value: float
    """NaN without a test."""
    q_value: float
    """Adjusted for all tests of the comparison (Benjamini and Hochberg); NaN for an average."""
    note: str
    """The name of the test, or the reason why there is none."""
    error: float = math.nan
    """Standard error."""
    degrees_of_freedom: float = math.inf
    """Degrees of freedom of the standard error."""


AVERAGE = "average"


def differences(measured: Sequence[MeasuredBackbone]) -> list[Difference]:
    """Differences of all backbones from the first one, the reference; each method ends with averages."""
    reference, found = measured[0], []
    for other in measured[1:]:
        keys = [key for key in other.values if key in reference.values]
        for method in dict.fromkeys(method for _, method in keys):
            own = [
                _difference(reference, other, dataset, method) for dataset, its_method in keys if its_method == method
            ]
            found += own
            if len(own) > 1:
                found.append(_average(other.name, method, own))
    tested = [place for place, each in enumerate(found) if each.dataset != AVERAGE and np.isfinite(each.p_value)]
    adjusted = benjamini_hochberg(np.array([found[place].p_value for place in tested]))
    for place, q_value in zip(tested, adjusted, strict=True):
        found[place] = found[place]._replace(q_value=float(q_value))
    return found


def _difference(reference: MeasuredBackbone, other: MeasuredBackbone, dataset: str, method: str) -> Difference:
    key = dataset, method
    value = other.values[key].value - reference.values[key].value
    metric = reference.values[key].metric
    make = _untested(other.name, dataset, method, value)
    if metric != other.values[key].metric:
        return make("no test: other metrics")
    if key in reference.trainings and key in other.trainings:
        if reference.data_hashes.get(key) != other.data_hashes.get(key):
            return make("no test: other images")
        if reference.seed != other.seed:  # it determines the images of a fraction, and the training
            return make("no test: other seeds")
        return _of_trainings(reference.trainings[key], other.trainings[key], make)
    if not all(key in each.answers and each.answers[key].is_file() for each in (reference, other)):
        return make("no test: the answers are not there")
    first, second = _answers(reference, key), _answers(other, key)
    if first.image != second.image or not np.array_equal(first.label, second.label):
        return make("no test: other test images")
    if reference.data_hashes.get(key) != other.data_hashes.get(key):
        return make("no test: other training images")
    is_few = bool(method.partition("-")[2])
    if first.right.shape != second.right.shape or (is_few and reference.seed != other.seed):
        return make("no test: other draws")
    if is_few:
        return _by_student(gains_of(first, second, metric), "draw", make)
    estimate = difference_estimate(first.right[0], second.right[0], first.label, metric)
    if metric == "accuracy":
        made, p_value = make("McNemar"), mcnemar(first.right[0], second.right[0])
    else:
        made, p_value = make("exchanges"), exchange_test(first.right[0], second.right[0], first.label, BOOTSTRAP_SEED)
    return made._replace(estimate=estimate, p_value=p_value, error=estimate.standard_error)


def _answers(one: MeasuredBackbone, key: ResultKey) -> StoredAnswers:
    """The answers behind a value; UserError if they give another value."""
    answers, value = load_answers(one.answers[key]), one.values[key]
    given = float(np.mean([score_right(right, answers.label, value.metric) for right in answers.right]))
    if abs(given - value.value) > VALUE_TOLERANCE:
        raise UserError(
            f"{one.name}, {' '.join(key)}: its value is {value.value:.4f}, that of its answers in "
            f"{one.answers[key]} is {given:.4f}; restore both, or run lbgen transfer again"
        )
    return answers


def _by_student(gains: NDArray[np.float64], over: str, make: Callable[[str], Difference]) -> Difference:
    """Student's paired test.  over: what each of the gains, (draws,), belongs to, for the note."""
    if len(gains) < 2:
        return make(f"no test: a single {over}")
    paired = paired_t_of(gains)
    if not math.isfinite(paired.p_value):
        return make(f"no test: the difference is the same in every {over}")
    return make(f"paired t over {over}s")._replace(**paired._asdict())


def _of_trainings(first: Trainings, second: Trainings, make: Callable[[str], Difference]) -> Difference:
    """Test for detection or segmentation: over the seeds or, with one training each, over the test images."""
    if len(first.draws) != len(second.draws):
        return make("no test: other seeds")
    if len(first.draws) > 1:
        return _by_student(np.subtract(second.draws, first.draws), "seed", make)
    if not first.resampled or len(first.resampled) != len(second.resampled):
        return make("no test: the bootstraps are not there")
    value = second.draws[0] - first.draws[0]
    estimate = intervals.normal_interval(value, np.subtract(second.resampled, first.resampled), LIMITS)
    p_value = normal_p(value, estimate.standard_error)
    return make("bootstrap over images")._replace(estimate=estimate, p_value=p_value, error=estimate.standard_error)


def _untested(backbone: str, dataset: str, method: str, value: float) -> Callable[[str], Difference]:
    estimate = Estimate(value, math.nan, math.nan)
    return lambda note: Difference(backbone, dataset, method, estimate, math.nan, math.nan, note)


def _average(backbone: str, method: str, each: Sequence[Difference]) -> Difference:
    """The mean of differences, which are independent because they come from different images: variances add."""
    value = sum(one.estimate.value for one in each) / len(each)
    make = _untested(backbone, AVERAGE, method, value)
    variances = [one.error**2 for one in each]
    if not math.isfinite(sum(variances)):
        return make("no test: one of the data sets has none")
    spread = sum(variance**2 / one.degrees_of_freedom for variance, one in zip(variances, each, strict=True))
    degrees_of_freedom = sum(variances) ** 2 / spread if spread else math.inf
    paired = student(value, math.sqrt(sum(variances)) / len(each), degrees_of_freedom)
    return make("Welch's t" if spread else "normal")._replace(**paired._asdict())


# ---- tests ----


def difference_estimate(
    first: NDArray[np.bool_], second: NDArray[np.bool_], label: NDArray, metric: Metric
) -> Estimate:
    """Second minus first, with the interval of a bootstrap that redraws images.  All (N,)."""
    if (first == second).all():  # every resample is zero; by the rule of three, a share below 3 / N differs
        half = -math.log(0.05) / len(label)
        return Estimate(0.0, -half, half)
    mean = intervals.mean if metric == "accuracy" else intervals.balanced_mean
    return mean(second.astype(float) - first.astype(float), label, BOOTSTRAP_SEED, LIMITS)


def gains_of(first: StoredAnswers, second: StoredAnswers, metric: Metric) -> NDArray[np.float64]:
    """The second's value minus the first's in each draw, (draws,)."""
    pairs = zip(first.right, second.right, strict=True)
    return np.array([score_right(b, first.label, metric) - score_right(a, first.label, metric) for a, b in pairs])
