"""What the HTML pages share: the shell, its two scripts and their security policy, and the pieces of a page.

A page works offline and asks the network for nothing. Text from the data is escaped by the templates, and a content
security policy lets no script run but the two that are written here. The same pieces give the same bytes.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.report.charts import Figure
from pipeline.report.tables import DataTable

HERE = Path(__file__).parent
SHARED = ("page.html", "macros.html")  # the templates that every page is made with


@dataclass(frozen=True)
class Section:
    """A part of a page that a caller adds."""

    title: str
    text: str
    table: pa.Table | None = None


@dataclass(frozen=True)
class Chart:
    figure: Figure
    description: str  # what it shows, for those who do not see it
    title: str = ""


@dataclass(frozen=True)
class Part:
    """One topic: what to know about it, then its charts and tables."""

    title: str
    text: str
    charts: Sequence[Chart]
    tables: Sequence[DataTable]
    folded: DataTable | None = None


def render(template: str, **context: Any) -> str:
    """The page of ``template``, one of those beside this file, which extends ``page.html``.

    Every page needs ``kicker`` (the kind of page), ``name`` and ``description`` in its context.
    """
    from jinja2 import DictLoader, Environment, StrictUndefined
    from plotly.offline import get_plotlyjs

    scripts = [get_plotlyjs(), _text("report.js")]
    environment = Environment(
        loader=DictLoader({name: _text(name) for name in (template, *SHARED)}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        **context, style=_text("report.css"), scripts=scripts, script_hashes=[_hash(script) for script in scripts]
    )


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
