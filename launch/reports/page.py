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
    environment.filters.update(cell=_cell, text=_text, code=_code)
    return environment


def _cell(cell: Cell) -> str:
    """Return a cell as Markdown without markup of its own."""
    text = _escaped(cell.text)
    return f"**{text}**" if cell.bold else text


def _text(text: str) -> str:
    """Escape text for Markdown, except for `words` between backticks."""
    return "".join(
        part if part.startswith("`") else _escaped(part)
        for part in re.split(r"(`[^`|]+`)", " ".join(text.split()))
    )


def _escaped(text: str) -> str:
    """Escape what Markdown reads as emphasis, code, links, tables or HTML; snake_case needs no escape."""
    spaced = re.sub(r"\s+", " ", text)
    return re.sub(r"[\\|*<`&~\[\]]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", spaced)


def _code(text: str) -> Markup:
    """Escape text for HTML and turn `words` between backticks into code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
