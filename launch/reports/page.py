"""Render the report's two pages from templates: Markdown with links to its figures, and one HTML file."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from longplay.launch.reports.tables import Cell, Table


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure: the path of its PNG from report.md, and the <svg> element for report.html."""

    title: str
    caption: str
    png: str
    svg: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with text, tables and figures; texts, titles and headers may hold `code`."""

    title: str
    text: str
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


def render(template: str, *, title: str, text: str, sections: Sequence[Section]) -> str:
    """Return the page that `template` describes: "report.md" or "report.html"."""
    return _templates().get_template(f"{template}.jinja").render(title=title, text=text, sections=sections)


def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(["html.jinja"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(markdown=_markdown, code=_code)
    return environment


def _markdown(cell: Cell) -> str:
    text = re.sub(r"([\\|*<`])", r"\\\1", " ".join(cell.text.split()))
    return f"**{text}**" if cell.bold else text


def _code(text: str) -> Markup:
    """Escape text for HTML and turn `words` between backticks into code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
