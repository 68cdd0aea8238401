"""lbgen: category names in, a low-bias annotated image dataset out.

The public names load their modules on first use, so that `import lbgen` and `lbgen --help` stay fast.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

PUBLIC = {
    "AlignConfig": "lbgen.alignment.config",
    "align": "lbgen.alignment.run",
    "GenerateConfig": "lbgen.generation.config",
    "generate": "lbgen.generation.run",
    "plan": "lbgen.generation.estimate",
    "verify": "lbgen.generation.verify",
    "AuditConfig": "lbgen.audit.config",
    "audit": "lbgen.audit.run",
    "QuickstartConfig": "lbgen.quickstart.run",
    "quickstart": "lbgen.quickstart.run",
    "export_microworld": "lbgen.microworld",
    "Category": "lbgen.vocabulary.vocabulary",
    "Vocabulary": "lbgen.vocabulary.vocabulary",
    "load_vocabulary": "lbgen.vocabulary.vocabulary",
    "UserError": "lbgen.errors",
}
__all__ = ["__version__", *PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps the function `lbgen.quickstart.run` in sight when the module of the same name is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in PUBLIC or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
