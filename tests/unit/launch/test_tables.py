"""Tables are aligned plain text in a pipe and drawn with lines on a terminal."""

import io
import sys

import pytest

from longplay.launch.console.tables import new_table, print_table


def printed(*, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> str:
    class Output(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    output = Output()
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "20")
    table = new_table("", "sasrec", widths=(20, 19))
    table.add_row("full hit@5", "0.2992 ± 0.0092", end_section=True)
    table.add_row("full_unseen hit@5", "[0.5]")
    print_table(table)
    return output.getvalue()


def test_a_pipe_gets_aligned_text_of_any_width(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(terminal=False, monkeypatch=monkeypatch).splitlines() == [
        f"{'':<20}{'sasrec':>20}",
        "-" * 40,
        f"{'full hit@5':<20}{'0.2992 ± 0.0092':>20}",
        "-" * 40,
        f"{'full_unseen hit@5':<20}{'[0.5]':>20}",
    ]


def test_a_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "─" in printed(terminal=True, monkeypatch=monkeypatch)
