"""A report's two pages: Markdown with links to its figures, and one HTML file that has them inside."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

from longplay.launch.reports.tables import Cell, Table

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 76rem; margin: 2rem auto;
  padding: 0 1rem }
h1, h2, h3 { line-height: 1.25 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd }
h3 { font-size: 1rem }
code { background: #f3f3f3; padding: 0 .25em; border-radius: 3px; font-size: .9em }
h3 code { background: none; padding: 0 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .87rem }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #e4e4e4; text-align: left; vertical-align: top }
th { border-bottom: 2px solid #999; vertical-align: bottom } tr.first td { border-top: 2px solid #bbb }
.number { text-align: right; font-variant-numeric: tabular-nums } td.number { white-space: nowrap }
 .faint { color: #777 }
figure { margin: 1.5rem 0 } figure svg { max-width: 100%; height: auto }
figcaption { color: #555; font-size: .87rem }
nav a { margin-right: 1.2em }
"""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure as both pages show it: the path of its PNG from report.md, and its SVG's text."""

    title: str
    caption: str
    png: str
    svg: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with text, tables and figures below it; `text` may hold `code`."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


def as_markdown(title: str, text: str, sections: Sequence[Section]) -> str:
    """The report as Markdown."""
    parts = [f"# {title}", text]
    for section in sections:
        parts += [f"## {section.title}", section.text]
        for table in section.tables:
            parts += [f"### {table.title}", _markdown_table(table), table.note]
        for picture in section.pictures:
            parts += [f"### {picture.title}", f"![{picture.title}](<{picture.png}>)", picture.caption]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(table: Table) -> str:
    names, numbers = table.num_names, len(table.header) - table.num_names
    rule = ["---"] * names + ["---:"] * numbers
    lines = [_line(table.header), _line(rule)]
    for row in table.rows:
        lines.append(_line([f"**{_escaped(c.text)}**" if c.bold else _escaped(c.text) for c in row]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return re.sub(r"([\\|*<`])", r"\\\1", " ".join(text.split()))


def as_html(title: str, text: str, sections: Sequence[Section]) -> str:
    """The report as one HTML page that loads nothing."""
    links = "".join(f'<a href="#{_anchor(s.title)}">{html.escape(s.title)}</a>' for s in sections)
    parts = [f"<h1>{html.escape(title)}</h1>", _paragraph(text), f"<nav>{links}</nav>"]
    for section in sections:
        parts.append(f'<h2 id="{_anchor(section.title)}">{html.escape(section.title)}</h2>')
        parts.append(_paragraph(section.text))
        for table in section.tables:
            parts += [f"<h3>{_code(table.title)}</h3>", _html_table(table), _paragraph(table.note)]
        for picture in section.pictures:
            label = html.escape(f"{picture.title}. {picture.caption}")
            svg = _inline(picture.svg).replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
            caption = html.escape(picture.caption)
            parts.append(f"<h3>{html.escape(picture.title)}</h3>")
            parts.append(f"<figure>{svg}<figcaption>{caption}</figcaption></figure>")
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _html_table(table: Table) -> str:
    classes = ["" if at < table.num_names else ' class="number"' for at in range(len(table.header))]
    head = "".join(f"<th{c}>{_code(text)}</th>" for c, text in zip(classes, table.header, strict=True))
    rows, before = [], None
    for row in table.rows:
        names = [cell.text for cell in row[: table.num_names - 1]]
        first = table.num_names < len(row) and before is not None and names != before
        before = names
        cells = "".join(_html_cell(cell, at >= table.num_names) for at, cell in enumerate(row))
        rows.append(f"<tr class='first'>{cells}</tr>" if first else f"<tr>{cells}</tr>")
    body = "\n".join(rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _html_cell(cell: Cell, is_number: bool) -> str:
    names = [name for name, on in (("number", is_number), ("faint", cell.faint)) if on]
    text = html.escape(cell.text)
    attribute = f' class="{" ".join(names)}"' if names else ""
    return f"<td{attribute}>{f'<strong>{text}</strong>' if cell.bold else text}</td>"


def _paragraph(text: str) -> str:
    return "".join(f"<p>{_code(part)}</p>" for part in text.split("\n\n") if part)


def _code(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def _inline(svg: str) -> str:
    """An SVG file's element alone."""
    return svg[svg.index("<svg ") :].rstrip()
