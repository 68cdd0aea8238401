"""Which cues are associated with the label, and which differ between datasets."""

from typing import Any

import numpy as np

from lbgen.audit.measures import CHANCE_FLOOR, PROBES, MeasuredDataset
from lbgen.audit.probes import CueTest, association_test, difference_test
from lbgen.metrics.explained_variance import combined_p_value
from lbgen.metrics.intervals import benjamini_hochberg

FALSE_DISCOVERIES = 0.05
"""Expected share of false discoveries among the associations, pairs and differences that are called significant."""


def differences(measured: list[MeasuredDataset]) -> dict[str, dict[str, dict[str, Any]]]:
    """Dataset -> figure -> test of its difference from the first dataset.

    q is adjusted over all figures of one kind (probes or content) of all datasets. A probe's difference is significant
    only if the test of all probes together is.
    """
    first = measured[0]
    result: dict[str, dict[str, dict[str, Any]]] = {m.observed.name: {} for m in measured[1:]}
    tests = {(m.observed.name, key): _difference(first, m, key) for m in measured[1:] for key in m.figures}
    together = {name: test["significant"] for name, test in differences_together(measured).items()}
    for of_probes in (True, False):
        chosen = [pair for pair in tests if pair[1].startswith("probes.") == of_probes]
        q_values = benjamini_hochberg(np.array([tests[pair].p_value for pair in chosen]))
        for (name, key), q in zip(chosen, q_values.tolist(), strict=True):
            test, open_ = tests[name, key], not of_probes or together[name]
            found = {"p_value": test.p_value, "q_value": q, "significant": bool(open_ and q < FALSE_DISCOVERIES)}
            result[name][key] = found | {"higher": bool(test.higher)}
    return {name: {key: found[key] for key in first.figures} for name, found in result.items()}


def _difference(first: MeasuredDataset, m: MeasuredDataset, key: str) -> CueTest:
    name = key.removeprefix("probes.")
    return difference_test(*((each.figures[key], each.explained.get(name)) for each in (first, m)))


def differences_together(measured: list[MeasuredDataset]) -> dict[str, dict[str, Any]]:
    """Dataset -> one test of whether any of its probes differs from the first dataset's."""
    result = {}
    for m in measured[1:]:
        p_values = [_difference(measured[0], m, f"probes.{name}").p_value for name in PROBES]
        result[m.observed.name] = _together(p_values)
    return result


def _together(p_values: list[float]) -> dict[str, Any]:
    p_value = combined_p_value(np.array(p_values))
    return {"p_value": p_value, "significant": bool(p_value < FALSE_DISCOVERIES)}


def probe_tests(m: MeasuredDataset) -> dict[str, dict[str, Any]]:
    """Probe that does not see the object -> test of its association with the category; q is adjusted over these probes.

    A probe is significant only if the test of all of them together is.
    """
    if not m.explained:
        return {}
    tests = {name: association_test(m.figures[f"probes.{name}"], m.chance, m.explained[name]) for name in CHANCE_FLOOR}
    q_values = benjamini_hochberg(np.array([test.p_value for test in tests.values()])).tolist()
    together = _together([test.p_value for test in tests.values()])
    found: dict[str, dict[str, Any]] = {"together": together}
    for (name, test), q in zip(tests.items(), q_values, strict=True):
        found[name] = {
            "explained_variance": m.explained[name].share,
            "p_value": test.p_value,
            "q_value": q,
            "significant": together["significant"] and q < FALSE_DISCOVERIES,
            "p_more_even_than_chance": m.balance[name].p_value,
            "balanced_directions": m.balance[name].directions,
        }
    return found
