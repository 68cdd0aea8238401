"""lbgen: category names in, a low-bias, annotated image dataset out.

The public names load their modules on first use, so that `import lbgen` and `lbgen --help` stay fast.
"""

from importlib import import_module
from typing import Any

from lbgen import audit, quickstart

# These packages have the names of public functions. Python sets a package as an attribute of its parent when it first
# loads it; from here on they are loaded, and the attribute is deleted, so that `__getattr__` finds the functions.
del audit, quickstart

__version__ = "0.1.0"

PUBLIC = {
    "AlignConfig": "lbgen.alignment.config",
    "align": "lbgen.alignment.train",
    "GenerateConfig": "lbgen.generation.config",
    "generate": "lbgen.generation.run",
    "plan": "lbgen.generation.estimate",
    "VerifyConfig": "lbgen.generation.config",
    "verify": "lbgen.generation.verify",
    "AuditConfig": "lbgen.audit.config",
    "audit": "lbgen.audit.run",
    "QuickstartConfig": "lbgen.quickstart.run",
    "quickstart": "lbgen.quickstart.run",
    "ExportConfig": "lbgen.microworld.config",
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
