"""Runs that end in the middle of a shard and go on."""

from collections.abc import Sequence

import pytest

from lbgen.errors import UserError
from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import PlannedImage
from lbgen.generation.render import Renderer
from lbgen.generation.run import generate
from lbgen.generation.workers.encode import Rendered


def generate_with_a_stop(config: GenerateConfig) -> None:
    """Stop before the third batch, and start again."""
    render, calls = Renderer.render, []

    def stopped(self: Renderer, batch: Sequence[PlannedImage]) -> Rendered:
        calls.append(batch)
        if len(calls) == 3:
            raise UserError("stopped")
        return render(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Renderer, "render", stopped)
        with pytest.raises(UserError, match="stopped"):
            generate(config)
    generate(config)
