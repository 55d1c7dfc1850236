"""Text of strangers where it is shown: one function for each format, after which it is text and nothing else.

Class names, keys, notes and phrases come from files that anybody may have written. HTML is escaped by the templates
(Jinja's autoescape) and, where none is used, by `html`.
"""

from __future__ import annotations

import re
from html import escape as html_escape

__all__ = ["csv_cell", "html", "latex", "markdown", "markup", "one_line", "printable"]

# Controls of C0 and C1, what turns the direction of text around, and halves of surrogate pairs.
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")
FORMULA = re.compile(r"[=+\-@\t\r\n|%]")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?%?")
LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def printable(text: object) -> str:
    """For a terminal: control characters, which could move the cursor, colour or rename it, are shown as their codes;
    lines stay."""
    return CONTROL.sub(lambda m: f"\\x{ord(m[0]):02x}" if ord(m[0]) < 256 else f"\\u{ord(m[0]):04x}", str(text))


def one_line(text: object) -> str:
    """`printable` on one line."""
    return printable(BREAKS.sub(" ", str(text)))


def markup(text: object) -> str:
    """For rich: `one_line`, and square brackets are no style."""
    from rich.markup import escape

    return escape(one_line(text))


def markdown(text: object) -> str:
    """For a cell or a line of Markdown: no table ends, no tag begins and no link is made. Stars and underscores, which
    only slant, stay readable as they are."""
    line = one_line(text).replace("\\", "\\\\").replace("<", "&lt;").replace(">", "&gt;")
    return line.replace("|", "\\|").replace("](", "]\\(")


def latex(text: object) -> str:
    """For a cell of LaTeX, or behind a ``%``."""
    return "".join(LATEX.get(c, c) for c in one_line(text))


def csv_cell(text: object) -> str:
    """For a cell of CSV: spreadsheets run what begins like a formula, unless it is a number or begins with an
    apostrophe."""
    line = one_line(text)
    return f"'{line}" if FORMULA.match(line) and not NUMBER.fullmatch(line) else line


def html(text: object) -> str:
    """For HTML without a template."""
    return html_escape(one_line(text))
