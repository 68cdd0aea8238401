"""Writes docs/families.md: which statement about which generator family the tests have just confirmed.

python tests/families_table.py
"""

import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/families.md"

FAMILIES = {
    "sd": "Stable Diffusion 1.x, 2.x",
    "sdxl": "Stable Diffusion XL",
    "pixart-sigma": "PixArt-Sigma",
    "sd3": "Stable Diffusion 3, 3.5",
    "flux": "FLUX.1",
    "flux-2-klein": "FLUX.2 klein",
    "sana": "Sana",
    "z-image": "Z-Image",
}
"""Key in the tests' parameters -> name on the page."""
SAME = {"flux-dev": "flux", "flux-schnell": "flux"}
OF_ONE_FAMILY = {
    "test_a_single_file_draws_what_the_folder_draws": "sd",
    "test_a_single_file_of_the_xl_family": "sdxl",
    "test_flux_is_converted_in_its_real_width": "flux",
}
"""Tests without parameters."""
OF_STABLE_DIFFUSION = (
    "tests/models/families/test_stable_diffusion.py",
    "tests/models/test_sampling.py",
    "tests/models/test_adapter.py",
    "tests/alignment/test_align_resume.py",
    "tests/generation/workers/test_generate_workers.py",
)
"""Files whose tests have Stable Diffusion alone."""


class Statement(NamedTuple):
    what: str
    how: str
    tests: tuple[str, ...]


STATEMENTS = (
    Statement(
        "images",
        "equal to those of the family's own diffusers pipeline, up to float tolerance, for the same latents, "
        "prompts, steps and guidance",
        ("test_sampling_equals_the_diffusers_pipeline",),
    ),
    Statement(
        "to the bit",
        "one image without guidance, where the arithmetic is the same, is identical to the pipeline's",
        ("test_one_image_without_guidance_is_the_pipelines_to_the_bit",),
    ),
    Statement(
        "schedulers",
        "with another scheduler, images equal those of the pipeline with this scheduler (schedulers of Stable "
        "Diffusion that are chosen by name are counted under images). The pipelines of FLUX.1 schnell and Z-Image "
        "do not accept DPM-Solver++; here images with it are compared with those of the own scheduler and are "
        "close to them",
        (
            "test_another_scheduler_equals_the_pipeline_with_it",
            "test_a_checkpoints_own_scheduler_is_any_that_diffusers_calls_compatible",
        ),
    ),
    Statement(
        "gradient",
        "equals that of a loop written by hand, with stop-gradients at the other calls",
        (
            "test_gradients_equal_the_loop_with_explicit_stop_gradients",
            "test_images_and_gradients_equal_the_loop_with_explicit_stop_gradients",
        ),
    ),
    Statement(
        "adapter",
        "the saved file gives the same image in the plain pipeline, and the merged adapter the same image as the "
        "unmerged one",
        (
            "test_the_adapter_gives_the_same_image_in_the_plain_pipeline_and_merged",
            "test_diffusers_loads_the_saved_adapter_and_draws_the_same_image",
            "test_merged_equals_unmerged",
        ),
    ),
    Statement(
        "alignment",
        "a run that is killed after any update and started again ends with the same bytes",
        ("test_a_killed_run_ends_bit_identical", "test_killed_at_any_moment_and_resumed_the_run_ends_bit_identical"),
    ),
    Statement(
        "dataset",
        "the same bytes in one part or several, with one process or two, and after a repair; `lbgen verify` finds "
        "no damage",
        ("test_a_dataset_is_the_same_in_parts_and_after_a_repair", "test_processes_make_what_one_makes"),
    ),
    Statement(
        "prompts",
        "a prompt is refused if it has too many tokens for the encoder with the smallest limit",
        (
            "test_too_many_tokens_are_refused_in_the_encoder_with_the_least_room",
            "test_a_prompt_that_would_be_cut_is_refused",
        ),
    ),
    Statement(
        "other uses",
        "checkpoints for inpainting, editing and similar uses are refused because of their configuration",
        (
            "test_checkpoints_for_other_uses_are_refused_by_their_configuration",
            "test_a_network_of_another_kind_is_refused_by_its_configuration",
        ),
    ),
    Statement(
        "exports",
        "files of `lbgen export`, read by plain diffusers, have the weights of the generator with its adapter",
        ("test_exports_have_the_weights_of_the_generator_with_its_adapter",),
    ),
    Statement(
        "kohya's names",
        "an adapter of a transformer with kohya's names, merged into the original weights by a reader in the tests, "
        "gives the weights of the generator with its adapter; for PixArt-Sigma and Sana this export is refused",
        ("test_merged_into_the_makers_weights_it_is_the_adapter",),
    ),
    Statement(
        "single file",
        "a file of the network with its original names gives the same images as the folder. FLUX.1 is converted by "
        "diffusers only in its real width, so there the weights are compared, with one number per row. Files of "
        "PixArt-Sigma are not read",
        ("test_a_file_of_the_transformer_alone_draws_what_the_folder_draws", *OF_ONE_FAMILY),
    ),
)
TEXT = """# What was verified of each family

Written by `python tests/families_table.py`, which runs the tests. They use miniatures of the real architectures with
random weights, saved as pipeline folders. The numbers count the cases that passed. **No family was run with its real
weights, and none on a GPU.**

| | {columns} |
|---|{rules}|
{rows}

{statements}
"""


class Outcomes:
    """A plugin of pytest: the cases that passed and that did not, by statement and family."""

    def __init__(self) -> None:
        self.passed: defaultdict[tuple[Statement, str], int] = defaultdict(int)
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.when == "call" and (statement := statement_of(report.nodeid)) and report.passed:
            self.passed[statement, family_of(report.nodeid)] += 1


def statement_of(node: str) -> Statement | None:
    test = node.partition("[")[0].rpartition("::")[2]
    return next((statement for statement in STATEMENTS if test in statement.tests), None)


def family_of(node: str) -> str:
    """The key of the family that a test's file or parameters name."""
    file, _, parameters = node.partition("::")
    if parameters in OF_ONE_FAMILY:
        return OF_ONE_FAMILY[parameters]
    if file in OF_STABLE_DIFFUSION:
        return "sd"
    if file.endswith("test_stable_diffusion_xl.py"):
        return "sdxl"
    named = parameters.partition("[")[2].removesuffix("]")  # the family, and after it what else the test varies
    keys = [key for key in (*FAMILIES, *SAME) if f"{named}-".startswith(f"{key}-")]
    family = max(keys, key=len, default=named)
    return SAME.get(family, family)


def page(passed: dict[tuple[Statement, str], int]) -> str:
    rows = [
        f"| {statement.what} | {' | '.join(str(passed.get((statement, key), '–')) for key in FAMILIES)} |"
        for statement in STATEMENTS
    ]
    return TEXT.format(
        columns=" | ".join(FAMILIES.values()),
        rules="|".join("---" for _ in FAMILIES),
        rows="\n".join(rows),
        statements="\n".join(f"- **{statement.what}**: {statement.how}." for statement in STATEMENTS),
    )


def main() -> int:
    outcomes = Outcomes()
    tests = " or ".join(test for statement in STATEMENTS for test in statement.tests)
    files = [*OF_STABLE_DIFFUSION, "tests/models/families", "tests/exports", "tests/models/checkpoints"]
    pytest.main(["-q", "-p", "no:cacheprovider", "-k", tests, *dict.fromkeys(files)], [outcomes])
    if outcomes.failed:
        print(f"{PAGE} stays as it was; these failed: {', '.join(outcomes.failed)}", file=sys.stderr)
        return 1
    PAGE.write_text(page(outcomes.passed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
