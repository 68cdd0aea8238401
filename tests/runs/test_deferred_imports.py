"""The command line's stand-ins for modules that are loaded when they are used, in a Python of their own."""

import subprocess
import sys
from textwrap import dedent

PROGRAM = """
    import sys

    from lbgen.runs.start_up.deferred_imports import StandIn, defer_imports

    defer_imports()
    import scipy.stats
    import torch
    from diffusers import UNet2DConditionModel
    from diffusers.models import attention
    from diffusers.utils import torch_utils
    from scipy.optimize import linear_sum_assignment
    from transformers import CLIPTextModel

    # A step of an optimizer, which torch keeps from its compiler, needs none.
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones(1)
    optimizer.step()
    assert not torch_utils.is_compiled_module(torch.nn.Linear(1, 1))
    deferred = [name for name, module in sys.modules.items() if isinstance(module, StandIn)]
    wanted = {"torch._dynamo", "scipy.stats", "scipy.optimize", "diffusers.models.transformers"}
    assert wanted <= set(deferred), deferred
    assert not {"torch._inductor", "scipy.stats._stats_py"} & set(sys.modules)
    assert "diffusers.models.transformers.transformer_flux" not in sys.modules

    # What is used is loaded, and is what it would have been.
    assert linear_sum_assignment([[4, 1], [2, 8]])[1].tolist() == [1, 0]
    assert scipy.stats.norm.cdf(0) == 0.5
    assert sys.modules["scipy.optimize"].minimize.__module__ == "scipy.optimize._minimize"
    import diffusers.models.transformers
    import transformers.models

    assert diffusers.models.transformers.FluxTransformer2DModel.__name__ == "FluxTransformer2DModel"
    assert transformers.models.bloom.BloomConfig.__name__ == "BloomConfig"

    # The compiler, once it is asked to compile, has the marks that libraries put before.
    compiled = torch.compile(torch.nn.Linear(1, 1), backend="eager")
    compiled(torch.ones(1, 1))
    assert torch_utils.is_compiled_module(compiled)
    assert torch_utils.maybe_allow_in_graph is torch._dynamo.allow_in_graph
    assert id(attention.BasicTransformerBlock) in torch._dynamo.trace_rules._allowed_callable_ids.function_ids
    import torch._dynamo.config

    assert torch._dynamo.config is sys.modules["torch._dynamo.config"]
    assert not any(isinstance(module, StandIn) for module in sys.modules.values() if "_dynamo" in module.__name__)
    optimizer.step()
"""


def test_modules_are_loaded_when_they_are_used_and_are_then_as_ever():
    """Compared with torch's own record of what is marked for its compiler, and with known values of scipy."""
    done = subprocess.run([sys.executable, "-c", dedent(PROGRAM)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
