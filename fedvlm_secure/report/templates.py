"""The one way a page is put together: a template beside this file, escaping on, nothing undefined."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: str, filters: Iterable[Callable[..., Any]], context: Mapping[str, Any]) -> str:
    """The page; ``filters`` go by their own names."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # site names, descriptions and reasons are other people's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({show.__name__: show for show in filters})
    return environment.get_template(template).render(**context)
