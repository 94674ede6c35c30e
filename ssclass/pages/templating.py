"""The templates of every page that ssclass makes or serves."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from ssclass.text import printable

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


@cache
def environment() -> Environment:
    """Jinja's environment: everything is escaped but what a template marks as safe, and a name that is not is an error.

    Filters: `code` makes a text whose backticks enclose code; `plain` spells out what moves a cursor or hides itself.
    `many(2, "photo")` is "2 photos".
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("ssclass.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["code"] = _code
    made.filters["plain"] = lambda value: "–" if value is None else printable(str(value))
    made.globals["many"] = _many
    return made


def render(template: str, **values: Any) -> str:
    """A page from a template of ``pages/templates``, by its name."""
    return environment().get_template(template).render(**values)


def _many(count: int, word: str) -> str:
    """A count with its word: "1 photo", "2 batches"."""
    ending = "" if count == 1 else "es" if word.endswith("ch") else "s"
    return f"{count} {word}{ending}"


def _code(text: object) -> Markup:
    from markupsafe import Markup, escape

    parts = str(escape(printable(str(text)))).split("`")
    return Markup("".join(f"<code>{part}</code>" if at % 2 else part for at, part in enumerate(parts)))
