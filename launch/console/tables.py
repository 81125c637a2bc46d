"""Tables on stdout: drawn with lines on a terminal, aligned plain text elsewhere."""

import sys
from typing import Any, Literal

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

from longplay.common.printable import printable

# A line of dashes below the header and between sections, one space between columns, no frame.
_PLAIN = box.Box("    \n    \n----\n    \n----\n    \n    \n    \n")
_UNLIMITED_WIDTH = 1 << 16


class PrintableTable(Table):
    """A table whose cells may hold text of any origin; see `printable`."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        super().add_row(*(printable(cell) if isinstance(cell, str) else cell for cell in cells), **options)


def new_table(
    *headers: str, widths: tuple[int, ...] = (), align_first: Literal["left", "right"] = "left"
) -> Table:
    """Return an empty table. Columns after the first are right-aligned.

    Args:
        widths: minimum width of each column, in characters.
    """
    table = PrintableTable(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    for column, header in enumerate(headers):
        table.add_column(
            header,
            justify="right" if column else align_first,
            min_width=widths[column] if widths else None,
            no_wrap=True,
        )
    return table


def print_table(table: Table) -> None:
    """Print a table. Piped output is the same on every machine: no colors and no line wrapping."""
    if sys.stdout.isatty():
        Console(highlight=False, markup=False).print(table)
        return
    table.box = _PLAIN
    plain = Console(
        file=sys.stdout, force_terminal=False, width=_UNLIMITED_WIDTH, highlight=False, markup=False
    )
    plain.print(table, soft_wrap=True)
