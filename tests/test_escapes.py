"""Text of strangers is text in every format, by the programs that read the format."""

from __future__ import annotations

import io
from html.parser import HTMLParser

import pytest
from rich.console import Console

from avloc.escapes import csv_cell, html, latex, markdown, markup, one_line, printable

NASTY = [
    "<script>alert(1)</script>",
    "a | b",
    "[red]x[/red] [link=file:///etc/passwd]y[/link]",
    "[dog](javascript:alert(1))",
    "\x1b[31mred\x07 \x9b2J",
    "one\ntwo\r\nthree\u2028four",
    "\\input{/etc/passwd} 100 % $x$ a_b & c # ~ ^",
    "=cmd|' /C calc'!A0",
    "\u202egnp.exe",
    "caf\u00e9 \u732b",
]


@pytest.mark.parametrize("text", NASTY)
def test_a_terminal_shows_it_on_one_line_without_style(text: str) -> None:
    screen = io.StringIO()
    Console(file=screen, force_terminal=True, width=300, color_system="truecolor").print(markup(text), highlight=False)
    shown = screen.getvalue().rstrip("\n")
    assert shown == one_line(text)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e\u2028" for c in shown)


def test_lines_stay_where_a_terminal_may_show_several() -> None:
    assert printable("a\nb\x1b[2J") == "a\nb\\x1b[2J"
    assert printable("a\u202eb\ud800") == "a\\u202eb\\ud800"


@pytest.mark.parametrize("text", NASTY)
def test_html_shows_it(text: str) -> None:
    class Reader(HTMLParser):
        seen, tags = "", 0

        def handle_data(self, data: str) -> None:
            self.seen += data

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.tags += 1

    reader = Reader()
    reader.feed(html(text))
    reader.close()
    assert (reader.seen, reader.tags) == (one_line(text), 0)


@pytest.mark.parametrize("text", NASTY)
def test_markdown_ends_no_cell_and_begins_no_tag_or_link(text: str) -> None:
    found = markdown(text)
    bare = found.replace("\\\\", "").replace("\\|", "").replace("]\\(", "")
    assert not set("|<>\n") & set(bare)
    assert "](" not in bare


def test_latex_by_hand() -> None:
    assert latex("\\input{x} 5 % $a_b$ & # ~ ^\n2") == (
        r"\textbackslash{}input\{x\} 5 \% \$a\_b\$ \& \# \textasciitilde{} \textasciicircum{} 2"
    )


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+cmd|x", "'+cmd|x"),
        ("-abc", "'-abc"),
        ("\t=1", "\\x09=1"),
        ("-0.25", "-0.25"),
        ("+3.5e-2", "+3.5e-2"),
        ("dog", "dog"),
    ],
)
def test_no_cell_is_a_formula(text: str, cell: str) -> None:
    assert csv_cell(text) == cell
