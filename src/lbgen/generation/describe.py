"""What is written once a dataset is whole: its card and what other libraries read."""

from lbgen.generation import record as records
from lbgen.generation.config import GenerateConfig
from lbgen.generation.plan import Plan
from lbgen.storage import Store


def describe(store: Store, config: GenerateConfig, plan: Plan) -> None:
    store.write(records.COMPLETE, b"{}\n")
