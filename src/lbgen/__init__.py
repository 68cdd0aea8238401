"""lbgen: category names in, a low-bias, annotated image dataset out.

The public names load their modules on first use, so that `import lbgen` and `lbgen --help` stay fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lbgen.runs.version import __version__

PUBLIC = {
    "AlignConfig": "lbgen.alignment.config",
    "AlignResult": "lbgen.alignment.run",
    "align": "lbgen.alignment.run",
    "AlignEstimate": "lbgen.alignment.reports.estimate",
    "plan_align": "lbgen.alignment.reports.estimate",
    "GenerateConfig": "lbgen.generation.config",
    "GenerateResult": "lbgen.generation.run",
    "generate": "lbgen.generation.run",
    "PlanEstimate": "lbgen.generation.estimate",
    "plan": "lbgen.generation.estimate",
    "VerifyConfig": "lbgen.generation.config",
    "VerifyResult": "lbgen.generation.verify",
    "verify": "lbgen.generation.verify",
    "AuditConfig": "lbgen.audit.config",
    "AuditResult": "lbgen.audit.output",
    "audit": "lbgen.audit.run",
    "PretrainConfig": "lbgen.pretraining.config",
    "PretrainResult": "lbgen.pretraining.run",
    "pretrain": "lbgen.pretraining.run",
    "PretrainEstimate": "lbgen.pretraining.estimate",
    "plan_pretrain": "lbgen.pretraining.estimate",
    "TransferConfig": "lbgen.evaluation.transfer.config",
    "TransferResult": "lbgen.evaluation.transfer.run",
    "transfer": "lbgen.evaluation.transfer.run",
    "CompareConfig": "lbgen.evaluation.transfer.config",
    "Compared": "lbgen.evaluation.transfer.compare",
    "compare": "lbgen.evaluation.transfer.compare",
    "BiasConfig": "lbgen.evaluation.bias.config",
    "BiasResult": "lbgen.evaluation.bias.run",
    "bias": "lbgen.evaluation.bias.run",
    "QuickstartConfig": "lbgen.quickstart.run",
    "QuickstartResult": "lbgen.quickstart.run",
    "quickstart": "lbgen.quickstart.run",
    "ReproduceConfig": "lbgen.reproduction.config",
    "ReproduceResult": "lbgen.reproduction.run",
    "reproduce": "lbgen.reproduction.run",
    "ExportConfig": "lbgen.microworld.config",
    "export_microworld": "lbgen.microworld",
    "ExportAdapterConfig": "lbgen.exports.config",
    "export_adapter": "lbgen.exports.adapter",
    "ExportMergedConfig": "lbgen.exports.config",
    "export_merged": "lbgen.exports.merged",
    "RecipesConfig": "lbgen.configuration.catalogue",
    "recipes": "lbgen.configuration.catalogue",
    "DoctorConfig": "lbgen.checkup.config",
    "doctor": "lbgen.checkup.run",
    "Category": "lbgen.vocabulary.vocabulary",
    "Vocabulary": "lbgen.vocabulary.vocabulary",
    "load_vocabulary": "lbgen.vocabulary.vocabulary",
    "load_quality": "lbgen.models.quality",
    "Batch": "lbgen.alignment.objective",
    "register": "lbgen.configuration.extensions",
    "UserError": "lbgen.errors",
}
__all__ = ["__version__", *PUBLIC]

if TYPE_CHECKING:  # the same for type checkers, which do not follow `__getattr__`
    from lbgen.alignment.config import AlignConfig as AlignConfig
    from lbgen.alignment.objective import Batch as Batch
    from lbgen.alignment.reports.estimate import AlignEstimate as AlignEstimate
    from lbgen.alignment.reports.estimate import plan_align as plan_align
    from lbgen.alignment.run import AlignResult as AlignResult
    from lbgen.alignment.run import align as align
    from lbgen.audit.config import AuditConfig as AuditConfig
    from lbgen.audit.output import AuditResult as AuditResult
    from lbgen.audit.run import audit as audit
    from lbgen.checkup.config import DoctorConfig as DoctorConfig
    from lbgen.checkup.run import doctor as doctor
    from lbgen.configuration.catalogue import RecipesConfig as RecipesConfig
    from lbgen.configuration.catalogue import recipes as recipes
    from lbgen.configuration.extensions import register as register
    from lbgen.errors import UserError as UserError
    from lbgen.evaluation.bias.config import BiasConfig as BiasConfig
    from lbgen.evaluation.bias.run import BiasResult as BiasResult
    from lbgen.evaluation.bias.run import bias as bias
    from lbgen.evaluation.transfer.compare import Compared as Compared
    from lbgen.evaluation.transfer.compare import compare as compare
    from lbgen.evaluation.transfer.config import CompareConfig as CompareConfig
    from lbgen.evaluation.transfer.config import TransferConfig as TransferConfig
    from lbgen.evaluation.transfer.run import TransferResult as TransferResult
    from lbgen.evaluation.transfer.run import transfer as transfer
    from lbgen.exports.adapter import export_adapter as export_adapter
    from lbgen.exports.config import ExportAdapterConfig as ExportAdapterConfig
    from lbgen.exports.config import ExportMergedConfig as ExportMergedConfig
    from lbgen.exports.merged import export_merged as export_merged
    from lbgen.generation.config import GenerateConfig as GenerateConfig
    from lbgen.generation.config import VerifyConfig as VerifyConfig
    from lbgen.generation.estimate import PlanEstimate as PlanEstimate
    from lbgen.generation.estimate import plan as plan
    from lbgen.generation.run import GenerateResult as GenerateResult
    from lbgen.generation.run import generate as generate
    from lbgen.generation.verify import VerifyResult as VerifyResult
    from lbgen.generation.verify import verify as verify
    from lbgen.microworld import export_microworld as export_microworld
    from lbgen.microworld.config import ExportConfig as ExportConfig
    from lbgen.models.quality import load_quality as load_quality
    from lbgen.pretraining.config import PretrainConfig as PretrainConfig
    from lbgen.pretraining.estimate import PretrainEstimate as PretrainEstimate
    from lbgen.pretraining.estimate import plan_pretrain as plan_pretrain
    from lbgen.pretraining.run import PretrainResult as PretrainResult
    from lbgen.pretraining.run import pretrain as pretrain
    from lbgen.quickstart.run import QuickstartConfig as QuickstartConfig
    from lbgen.quickstart.run import QuickstartResult as QuickstartResult
    from lbgen.quickstart.run import quickstart as quickstart
    from lbgen.reproduction.config import ReproduceConfig as ReproduceConfig
    from lbgen.reproduction.run import ReproduceResult as ReproduceResult
    from lbgen.reproduction.run import reproduce as reproduce
    from lbgen.vocabulary.vocabulary import Category as Category
    from lbgen.vocabulary.vocabulary import Vocabulary as Vocabulary
    from lbgen.vocabulary.vocabulary import load_vocabulary as load_vocabulary

# These packages have the names of public functions. When Python first loads a package, it becomes an attribute of its
# parent. So they are loaded here and the attributes deleted; from then on `__getattr__` finds the functions.
for _name in ("audit", "quickstart"):
    import_module(f"{__name__}.{_name}")
    del globals()[_name]


if not TYPE_CHECKING:  # otherwise every name, even a misspelt one, would exist for type checkers

    def __getattr__(name: str) -> Any:
        if name not in PUBLIC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
