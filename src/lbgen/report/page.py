"""Render the templates of this package; the only place that uses jinja."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jinja2


def render(template: str, filters: dict[str, Callable[..., str]] | None = None, **values: Any) -> str:
    """Render a template. A missing value is an error, and values are escaped in .html templates."""
    environment = _environment(template.endswith(".html"), frozenset((filters or {}).items()))
    return environment.get_template(template).render(**values)


@lru_cache(maxsize=16)
def _environment(html: bool, filters: frozenset[tuple[str, Callable[..., str]]]) -> jinja2.Environment:
    """The jinja environment, which caches compiled templates."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lbgen.report"),
        autoescape=jinja2.select_autoescape(["html"], default_for_string=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not html,
    )
    environment.filters.update(filters)
    return environment
