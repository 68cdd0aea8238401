"""Reading JSON that may come from someone else."""

import json
from typing import Any


def parse_json(content: str | bytes) -> Any:
    """The value; raises ValueError for any content that is not JSON, also where it is nested too deeply."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
