"""Chosen samples as figures of a paper: a PDF with a page a figure, a column a sample, a row a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch

from avloc.data.media import load_picture
from avloc.files import complete
from avloc.report.gallery import Figure, rows_of

__all__ = ["write_figures"]

SIDE = 1.5
"""Of a picture on the page, inches."""


def write_figures(path: Path, figures: Sequence[Figure]) -> None:
    """Write each figure on a page of its own: the sounding regions above, then every run's heat maps."""
    # Type 42: conferences do not take the default's Type 3 fonts. Names of strangers are no formulas.
    style: Any = {"pdf.fonttype": 42, "font.size": 8, "text.parse_math": False}
    with (
        complete(path) as part,
        matplotlib.rc_context(style),
        PdfPages(part, metadata={"CreationDate": None}) as pages,
    ):
        for figure in figures:
            pages.savefig(canvas(figure))


def canvas(figure: Figure) -> Canvas:
    rows = rows_of(figure)
    columns = [entry.first for entry in figure.entries]
    out = Canvas(figsize=(SIDE * len(columns) + 0.4, SIDE * (1 + len(rows)) + 0.6), layout="constrained")
    axes = out.subplots(1 + len(rows), len(columns), squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for ax, kept in zip(axes[0], columns, strict=True):
        ax.set_title(" / ".join(part for part in (kept.label, kept.negative) if part) or kept.key)
        draw(ax, kept.true)
    for line, (run, answers) in zip(axes[1:], rows.items(), strict=True):
        line[0].set_ylabel(run)
        for ax, answer in zip(line, answers, strict=True):
            draw(ax, None if answer is None else answer.heat or answer.picture)
    shown = [kept for answers in rows.values() for kept in answers if kept is not None]
    sources = dict.fromkeys((str(name), str(colour)) for kept in shown for name, colour in kept.sources)
    if sources and len(columns) == 1:
        handles = [Patch(facecolor=colour, label=name) for name, colour in sources]
        out.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return out


def draw(ax: Any, file: Path | None) -> None:
    if file is not None and file.is_file():
        ax.imshow(np.asarray(load_picture(file.read_bytes()).convert("RGB")), interpolation="nearest")
