"""Template: pages from Jinja2 templates; whatever comes from rows, labels and names is escaped."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from deltatune.core.amounts import duration, figure, size
from deltatune.report.verdict import said
from deltatune.report.words import in_words, setting

FOLDER = Path(__file__).parent / "templates"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Of the page: its own styles and the images inside it; no script, nothing from elsewhere."""


@cache
def _environment() -> Environment:
    found = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "size": size,
        "duration": duration,
        "figure": figure,
        "said": said,
        "words": in_words,
        "setting": setting,
        "breakable": breakable,
    }
    return found


def breakable(text: str) -> Markup:
    """A name or path that a narrow page may break behind its marks.

    >>> breakable("a_b<c>")
    Markup('a_<wbr>b&lt;c&gt;')
    """
    return Markup(re.sub(r"([._/\\-])(?=\w)", r"\1<wbr>", str(escape(text))))


def page(template: str, **values: Any) -> str:
    """A whole page in one text; raises `UndefinedError` where a value that the template needs is not given."""
    style = (FOLDER / "style.css").read_text(encoding="utf-8")
    return _environment().get_template(template).render(policy=POLICY, style=style, **values)
