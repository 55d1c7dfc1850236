"""A report as one HTML file that opens offline: tables, curves and a gallery with sound."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from avloc.report.curves import Plot, svg
from avloc.report.gallery import Entry, Figure, Kept, rows_of, sound
from avloc.report.layout import ResultTable
from avloc.report.panels import inline
from avloc.report.results import Run
from avloc.report.seeds import Seeds

__all__ = ["Section", "write_document"]

LONG = 12
"""Rows from which a table can be shortened."""
OPTIONAL = {
    "heard": "the methods under other sounds",
    "published": "published rows that no run reproduces",
    "target": "published rows that runs reproduce",
    "difference": "differences",
    "control": "controls",
}
"""Kinds of rows that a reader can hide, and how they are called."""
COLOUR = re.compile(r"#[0-9a-f]{6}")
CELL = re.compile(r"(?P<number>[-+]?[\d.]+(?: ± [\d.]+)?)(?: (?P<interval>\[[^\]]*\]))?(?: \((?P<told>.*)\))?")


@dataclass(frozen=True)
class Section:
    """One chapter of the page.

    Attributes:
        title: its heading.
        table: its table, or None.
        plots: its curves.
        figures: its gallery; those of several samples have a column for each.
        kept: how many samples the runs kept, of which those of ``figures`` are shown.
        samples: size of the set.
        short: what the contents call it, its title by default.
        asked: whether the figures were asked for by their keys: all are drawn with a column for each sample.
        notes: what is told besides the table's own notes.
        breakdowns: smaller tables below it.
    """

    title: str
    table: ResultTable | None = None
    plots: Sequence[Plot] = ()
    figures: Sequence[Figure] = field(default_factory=list)
    kept: int = 0
    samples: int = 0
    short: str = ""
    asked: bool = False
    notes: Sequence[str] = ()
    breakdowns: Sequence[ResultTable] = ()


def write_document(path: Path, title: str, runs: Sequence[Run], sections: Sequence[Section]) -> None:
    """Write the page; nothing in it is fetched from anywhere."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    shown = [chapter(i, section) for i, section in enumerate(sections)]
    text = environment.from_string(PAGE).render(
        title=title,
        runs=[about(run) for run in runs],
        sections=shown,
        style=Markup(STYLE),
        script=Markup(SCRIPT),
        scripted=any(s["filtered"] or (len(s["rows"]) > LONG and len(s["optional"]) > 1) for s in shown),
        long=LONG,
        inverted=any(a["heard_as"] for s in shown for f in s["figures"] for a in f["answers"]),
        coloured=any(e["sources"] for s in shown for f in s["figures"] for e in f["samples"]),
        intervals=any(c["interval"] for s in shown for row in s["rows"] for c in row["cells"]),
    )
    path.write_text(text, encoding="utf-8")


def chapter(number: int, section: Section) -> dict[str, Any]:
    table = section.table
    groups = [(name, len(list(same))) for name, same in groupby(table.groups[1:])] if table else []
    rows = zip(table.kinds, table.rows, strict=True) if table else ()
    return {
        "id": f"s{number}",
        "title": section.title,
        "short": section.short or section.title,
        "columns": table.columns if table else [],
        "groups": groups,
        "rows": [{"kind": kind, "name": cells[0], "cells": [parts(c) for c in cells[1:]]} for kind, cells in rows],
        "optional": [(k, told) for k, told in OPTIONAL.items() if table and k in table.kinds],
        "notes": [*(table.notes if table else []), *section.notes],
        "findings": table.findings if table else [],
        "plots": [(p.title, Markup(svg(p, f"s{number}-{i}"))) for i, p in enumerate(section.plots)],
        "figures": [drawn(figure, section.asked or len(figure.entries) > 1) for figure in section.figures],
        "filtered": bool(section.figures) and not section.asked,
        "asked": section.asked,
        "labels": sorted({label for f in section.figures for label in labels_of(f)}),
        "kinds": sorted({kind for f in section.figures for e in f.entries for kind in e.kinds}),
        "shown": sum(len(f.entries) for f in section.figures),
        "breakdowns": [broken_down(f"s{number}b{i}", each) for i, each in enumerate(section.breakdowns)],
        "kept": section.kept,
        "samples": section.samples,
    }


def parts(cell: str) -> Mapping[str, str]:
    """A cell as ``number``, ``interval`` and what stands in brackets behind them."""
    found = CELL.fullmatch(cell)
    return {k: v or "" for k, v in found.groupdict().items()} if found else {"number": cell, "interval": "", "told": ""}


def broken_down(name: str, table: ResultTable) -> dict[str, Any]:
    rows = zip(table.kinds, table.rows, strict=True)
    return {
        "id": name,
        "title": table.title,
        "columns": table.columns,
        "rows": [{"kind": kind, "name": cells[0], "cells": [parts(c) for c in cells[1:]]} for kind, cells in rows],
        "notes": table.notes,
    }


def labels_of(figure: Figure) -> list[str]:
    return list(dict.fromkeys(e.first.label for e in figure.entries if e.first.label))


def drawn(figure: Figure, beside: bool) -> dict[str, Any]:
    """A figure for the page: a strip of pictures for each run, or a column for each sample and a row for each run."""
    rows = rows_of(figure)
    answers = {run: [None if k is None else answer(run, k, beside) for k in kept] for run, kept in rows.items()}
    one_picture = len({e.first.shows or e.first.key for e in figure.entries}) == 1
    return {
        "beside": beside,
        "title": figure.first.shows or figure.first.key if one_picture else "",
        "labels": labels_of(figure),
        "kinds": list(dict.fromkeys(kind for e in figure.entries for kind in e.kinds)),
        "samples": [shown(entry, beside) for entry in figure.entries],
        "rows": [{"run": run, "answers": found} for run, found in answers.items()],
        "answers": [a for found in answers.values() for a in found if a],
    }


def shown(entry: Entry, beside: bool) -> dict[str, Any]:
    first = entry.first
    heard = next((kept.sound for _, kept in entry.answers if kept.sound and kept.sound.is_file()), None)
    true = next((kept.true for _, kept in entry.answers if kept.true and kept.true.is_file()), None)
    return {
        "key": first.key,
        "label": first.label,
        "negative": first.negative,
        "sources": legend(kept for _, kept in entry.answers),
        "sound": None if heard is None else Markup(sound(heard)),
        "true": Markup(inline(true.read_bytes(), "image/jpeg")) if true and beside else None,
    }


def legend(answers: Iterable[Kept]) -> list[Mapping[str, str]]:
    """Name and colour of each source, once."""
    found = dict.fromkeys((str(name), str(colour)) for kept in answers for name, colour in kept.sources)
    return [{"name": name, "colour": colour} for name, colour in found if COLOUR.fullmatch(colour)]


def answer(run: str, kept: Kept, beside: bool) -> dict[str, Any]:
    picture = kept.heat if beside and kept.heat and kept.heat.is_file() else kept.picture
    return {
        "run": run,
        "label": kept.label or kept.key,
        "kind": kept.kind,
        "overlap": kept.overlap,
        "share": kept.share,
        "confidence": kept.confidence,
        "heard_as": ", ".join(f"{phrase} {cosine:.2f}" for phrase, cosine in kept.heard_as),
        "picture": Markup(inline(picture.read_bytes(), "image/jpeg")),
    }


def about(run: Run) -> dict[str, Any]:
    """What identifies a run: its code, its size, how it ran."""
    git, parameters = run.about.get("git") or {}, run.about.get("parameters") or {}
    commit = git.get("commit", "")[:10] + (" and changes" if git.get("dirty") else "")
    trained = f"{parameters['trainable'] / 1e6:.2f} M of {parameters['total'] / 1e6:.2f} M" if parameters else ""
    facts = {
        "method": run.about.get("method", "").rpartition(".")[2],
        "code": commit,
        "trainable parameters": trained,
        "precision": run.about.get("precision", ""),
        "processes": str(run.about.get("processes", "")),
        "seeds": ", ".join(map(str, run.about.get("seeds", ()))),
        "folder": ", ".join(str(each.folder) for each in (run.members if isinstance(run, Seeds) else (run,))),
    }
    return {"name": run.name, "facts": {k: v for k, v in facts.items() if v}}


STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f24; --mute: #5b6570; --rule: #dfe3e8; --soft: #f5f7f9;
  --own: #1d6fb8; --own-soft: #eaf3fb; --print: #8a5a0b; --bad: #b3261e; --good: #1c7c4a }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e7eaee; --mute: #9aa4af; --rule: #313840;
  --soft: #1c2127; --own: #74b6f0; --own-soft: #1a2a3a; --print: #e3b566; --bad: #ff8a80; --good: #7ad3a0 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem clamp(1rem, 3vw, 2.5rem) 4rem; max-width: 84rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .75rem }
h2 { font-size: 1.3rem; line-height: 1.25; margin: 3rem 0 .75rem; padding-top: .9rem;
  border-top: 1px solid var(--rule) }
h3 { font-size: 1.02rem; margin: 1.75rem 0 .5rem }
a { color: var(--own) }
:focus-visible { outline: 3px solid var(--own); outline-offset: 2px }
.runs { margin: 0; display: grid; gap: .35rem }
.runs div { display: grid; grid-template-columns: auto 1fr; gap: .9em; align-items: baseline }
.runs dt { font-weight: 600 }
.runs dd { margin: 0; color: var(--mute); font-size: .9rem; overflow-wrap: anywhere }
.runs dd span + span::before { content: " · " }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; padding: 0; margin: 1.25rem 0 0 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem }
th, td { padding: .38rem .8rem; text-align: right; vertical-align: top; white-space: nowrap }
thead th { font-weight: 600; vertical-align: bottom }
thead tr:last-child > * { border-bottom: 2px solid var(--ink) }
thead tr:last-child:not(:first-child) th { padding-top: 0; font-weight: 400; color: var(--mute) }
thead .over { text-align: center; border-bottom: 1px solid var(--rule) }
thead th:first-child, tbody th, td.text { text-align: left }
tbody th { font-weight: 400; white-space: normal; min-width: 15rem }
tbody tr { border-bottom: 1px solid var(--rule) }
tr.own { background: var(--own-soft) } tr.own th { box-shadow: inset 4px 0 var(--own) }
tr.own th, tr.own .number { font-weight: 650 }
tr.target th, tr.target td { color: var(--print); font-weight: 600 }
tr.difference th, tr.difference td { font-style: italic; color: var(--mute) }
tr.group th { font-size: .82rem; font-weight: 600; color: var(--mute); padding-top: 1.1rem }
tr:not(.control):not(.group) + tr.control { border-top: 2px solid var(--rule) }
tr.control, tr.heard { color: var(--mute) } tr.heard th { padding-left: 1.8rem }
.interval, .told { display: block; font-size: .78rem; font-weight: 400; color: var(--mute) }
.findings { padding-left: 1.2rem } .findings li { margin: .2rem 0 }
.notes { color: var(--mute); font-size: .86rem; padding-left: 1.2rem; max-width: 75ch } .notes li { margin: .15rem 0 }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1.5rem }
.plots figure { margin: 0; max-width: 30rem } .plots svg { width: 100%; height: auto; display: block }
.plots svg text { font-family: system-ui, sans-serif !important }
figcaption { font-weight: 600; font-size: .93rem }
.rows { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 0 0 .6rem; font-size: .86rem; color: var(--mute) }
.rows[hidden] { display: none }
.filters { display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; align-items: center; margin: .5rem 0 1rem;
  font-size: .93rem }
select { font: inherit; color: inherit; background: var(--soft); border: 1px solid var(--mute); border-radius: .35rem;
  padding: .25rem .4rem }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 34rem), 1fr)); gap: 1.1rem }
.gallery figure { margin: 0; padding: .75rem; background: var(--soft); border: 1px solid var(--rule);
  border-radius: .5rem; break-inside: avoid }
.filters[hidden], .gallery figure[hidden] { display: none }
.gallery img { width: 100%; height: auto; display: block; border-radius: .25rem }
.gallery .beside { width: fit-content; max-width: 100% }
.gallery .beside:has(thead th:nth-child(4)) { grid-column: 1 / -1 }
.tiles { width: auto } .tiles th, .tiles td { padding: .25rem .35rem; text-align: left; white-space: normal }
.tiles thead tr:last-child > * { border: 0 } .tiles tbody tr { border: 0 } .tiles .key { display: block }
.tiles tbody th { min-width: 6rem; max-width: 10rem; overflow-wrap: anywhere }
.tiles td { width: 13rem; min-width: 9rem } .tiles td > img { width: 12.5rem; max-width: 100% }
.sources { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem .9rem; margin: .3rem 0; padding: 0;
  font-size: .86rem }
.sources i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border: 1px solid var(--mute) }
.gallery p { margin: .45rem 0 .2rem; font-size: .86rem; display: flex; flex-wrap: wrap; gap: 0 .8rem }
.gallery audio { width: 100%; height: 2.2rem; margin-top: .6rem }
.key { color: var(--mute); font-weight: 400; font-size: .8rem; overflow-wrap: anywhere }
.kind { font-weight: 600 } .missed, .false-alarm { color: var(--bad) } .found, .rightly-silent { color: var(--good) }
footer { margin-top: 3rem; border-top: 1px solid var(--rule); color: var(--mute); font-size: .86rem; max-width: 75ch }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --mute: #444; --rule: #bbb; --soft: #fff;
  --own: #1d6fb8; --own-soft: #eef4fa; --print: #8a5a0b; --bad: #b3261e; --good: #1c7c4a }
  body { padding: 0; max-width: none; font-size: 10pt } .filters, .rows, audio, nav { display: none }
  .wide { overflow: visible }
  th, td { padding: .2rem .4rem } tr, figure { break-inside: avoid } h2, h3 { break-after: avoid }
  .gallery { grid-template-columns: 1fr 1fr } }
"""

SCRIPT = """
for (const form of document.querySelectorAll('form.rows')) {
  const table = form.nextElementSibling;
  form.hidden = false;
  form.addEventListener('change', e => {
    for (const row of table.querySelectorAll('tr.' + e.target.name)) row.hidden = !e.target.checked;
  });
  form.addEventListener('submit', e => e.preventDefault());
}
for (const form of document.querySelectorAll('form.filters')) {
  const gallery = form.nextElementSibling, figures = [...gallery.children];
  const update = () => {
    const { label, kind, order } = Object.fromEntries(new FormData(form));
    let count = 0;
    for (const f of figures) {
      const labels = f.dataset.label.split('\\n');
      f.hidden = (label && !labels.includes(label)) || (kind && !f.dataset.kinds.split('|').includes(kind));
      count += !f.hidden;
    }
    gallery.append(...(order === 'worst' ? [...figures].reverse() : figures));
    form.querySelector('output').textContent = count + ' of ' + figures.length + ' pictures match';
  };
  form.hidden = false;
  form.addEventListener('change', update);
  form.addEventListener('submit', e => e.preventDefault());
  update();
}
"""

PAGE = """{% macro told(a) %}
<span class="kind {{ a.kind|replace(' ', '-') }}">{{ a.kind }}</span>
{% if a.overlap is not none %}<span>IoU {{ "%.2f"|format(a.overlap) }}</span>{% else %}
<span>covers {{ "%.0f"|format(100 * a.share) }} %</span>{% endif %}
<span>confidence {{ "%.2f"|format(a.confidence) }}</span>
{% if a.heard_as %}<span>heard as {{ a.heard_as }}</span>{% endif %}
{% endmacro %}
{% macro sources(e) %}
{% if e.sources %}
<ul class="sources">{% for s in e.sources %}
<li><i style="background: {{ s.colour }}"></i>{{ s.name }}</li>
{% endfor %}</ul>
{% endif %}
{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<dl class="runs">
{% for run in runs %}
<div><dt>{{ run.name }}</dt><dd>{% for k, v in run.facts.items() %}<span>{{ k }} {{ v }}</span>{% endfor %}</dd></div>
{% endfor %}
</dl>
{% if sections|length > 1 %}
<nav aria-label="Contents"><ul>
{% for s in sections %}
<li><a href="#{{ s.id }}">{{ s.short }}</a></li>
{% endfor %}
</ul></nav>
{% endif %}
</header>
<main>
{% for s in sections %}
<section aria-labelledby="{{ s.id }}">
<h2 id="{{ s.id }}">{{ s.title }}</h2>
{% if s.rows %}
{% if s.rows|length > long and s.optional|length > 1 %}
<form class="rows" hidden aria-label="Rows of {{ s.title }}">
{% for kind, told in s.optional %}
<label><input type="checkbox" checked name="{{ kind }}"> {{ told }}</label>
{% endfor %}
</form>
{% endif %}
<div class="wide" tabindex="0" role="region" aria-labelledby="{{ s.id }}">
<table>
<thead>
{% if s.groups %}
<tr><td></td>
{% for name, n in s.groups %}<th class="over" scope="colgroup" colspan="{{ n }}">{{ name }}</th>{% endfor %}</tr>
{% endif %}
<tr>{% for c in s.columns %}{% if c %}<th scope="col">{{ c }}</th>{% else %}<td></td>{% endif %}{% endfor %}</tr>
</thead>
<tbody>
{% for row in s.rows %}
{% if row.kind == 'group' %}
<tr class="group"><th scope="rowgroup">{{ row.name }}</th><td colspan="{{ row.cells|length }}"></td></tr>
{% else %}
<tr class="{{ row.kind }}"><th scope="row">{{ row.name }}</th>
{%- for c in row.cells %}<td><span class="number">{{ c.number }}</span>
{%- if c.interval %}<span class="interval">{{ c.interval }}</span>{% endif %}
{%- if c.told %}<span class="told">{{ c.told }}</span>{% endif %}</td>{% endfor %}</tr>
{% endif %}
{% endfor %}
</tbody>
</table>
</div>
{% endif %}
{% if s.findings %}
<ul class="findings">{% for f in s.findings %}<li>{{ f }}</li>{% endfor %}</ul>
{% endif %}
{% if s.plots %}
<h3>Curves</h3>
<div class="plots">
{% for name, plot in s.plots %}
<figure><figcaption>{{ name }}</figcaption>{{ plot }}</figure>
{% endfor %}
</div>
{% endif %}
{% for t in s.breakdowns %}
<h3 id="{{ t.id }}">{{ t.title }}</h3>
<div class="wide" tabindex="0" role="region" aria-labelledby="{{ t.id }}">
<table>
<thead>
<tr>{% for c in t.columns %}{% if c %}<th scope="col">{{ c }}</th>{% else %}<td></td>{% endif %}{% endfor %}</tr>
</thead>
<tbody>
{% for row in t.rows %}
<tr class="{{ row.kind }}"><th scope="row">{{ row.name }}</th>
{%- for c in row.cells %}<td><span class="number">{{ c.number }}</span>
{%- if c.told %}<span class="told">{{ c.told }}</span>{% endif %}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% if t.notes %}
<ul class="notes">{% for n in t.notes %}<li>{{ n }}</li>{% endfor %}</ul>
{% endif %}
{% endfor %}
{% if s.figures %}
{% if not s.asked %}
<h3>Pictures</h3>
<p>{{ s.shown }} of the {{ s.kept }} samples whose pictures were kept, of {{ s.samples }} in the set; the best
IoU first, evenly over its range. Left to right: the picture, the sounding region where there is one, the heat map, and
the part found at 0.5, from which the IoU follows. A picture with several sounds has a column for each.</p>
<form class="filters" hidden aria-label="Filter the pictures of {{ s.title }}">
<label>class <select name="label"><option value="">all</option>
{% for l in s.labels %}<option>{{ l }}</option>{% endfor %}</select></label>
<label>answer <select name="kind"><option value="">all</option>
{% for k in s.kinds %}<option>{{ k }}</option>{% endfor %}</select></label>
<label>order <select name="order"><option value="best">best first</option>
<option value="worst">worst first</option></select></label>
<output aria-live="polite"></output>
</form>
{% endif %}
<div class="gallery">
{% for f in s.figures %}
<figure data-label="{{ f.labels|join('\n') }}" data-kinds="{{ f.kinds|join('|') }}"
{%- if f.beside %} class="beside"{% endif %}>
{% if f.beside %}
{% if f.title and f.samples|length > 1 %}<figcaption>{{ f.title }}</figcaption>{% endif %}
<div class="wide" tabindex="0" role="region" aria-label="{{ f.title or s.title }}">
<table class="tiles">
<thead><tr><td></td>{% for e in f.samples %}<th scope="col">{{ e.label or e.key }}
{%- if e.negative %} / {{ e.negative }}{% endif %}
{%- if e.label %}<span class="key">{{ e.key }}</span>{% endif %}</th>{% endfor %}</tr></thead>
<tbody>
<tr><th scope="row">sounding region</th>{% for e in f.samples %}<td>
{% if e.true %}<img loading="lazy" src="{{ e.true }}" alt="{{ e.label or e.key }}">{% endif %}
{{ sources(e) }}
{% if e.sound %}<audio controls preload="none" src="{{ e.sound }}" aria-label="Sound of {{ e.key }}"></audio>{% endif %}
</td>{% endfor %}</tr>
{% for row in f.rows %}
<tr><th scope="row">{{ row.run }}</th>{% for a in row.answers %}<td>
{% if a %}
<img loading="lazy" src="{{ a.picture }}" alt="{{ a.run }} on {{ a.label }}: {{ a.kind }}">
<p>{{ told(a) }}</p>
{% else %}
<span class="told">no picture kept</span>
{% endif %}
</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% else %}
{% set e = f.samples[0] %}
<figcaption>{{ e.label or e.key }}{% if e.negative %} / {{ e.negative }}{% endif %}
{% if e.label %} <span class="key">{{ e.key }}</span>{% endif %}</figcaption>
{{ sources(e) }}
{% for a in f.answers %}
<p>{% if f.answers|length > 1 or runs|length > 1 %}<b>{{ a.run }}</b>{% endif %}
{{ told(a) }}</p>
<img loading="lazy" src="{{ a.picture }}" alt="{{ a.run }} on {{ e.label or e.key }}: {{ a.kind }}">
{% endfor %}
{% if e.sound %}<audio controls preload="none" src="{{ e.sound }}" aria-label="Sound of {{ e.key }}"></audio>{% endif %}
{% endif %}
</figure>
{% endfor %}
</div>
{% endif %}
{% if s.notes %}
<h3>Notes</h3>
<ul class="notes">{% for n in s.notes %}<li>{{ n }}</li>{% endfor %}</ul>
{% endif %}
</section>
{% endfor %}
</main>
<footer>
<p>All numbers are percent unless their name says otherwise. Controls answer without hearing or without looking: what a
method has learnt is what it gains over the best of them.</p>
{% if inverted %}
<p>"Heard as" names the class phrases of the set whose text embeddings are nearest to what the method makes of the
sound, with their cosines.</p>
{% endif %}
{% if coloured %}
<p>Where several sources sound or are answered, each has its own colour: its region is outlined in it, and a pixel is
tinted with the colour of the map that is highest there. A map that names a class has that class's colour; maps without
classes are paired with the sources with which they share the most heat. One map for all sources is drawn by heat.</p>
{% endif %}
{% if intervals %}
<p>Numbers in brackets are 95 % intervals: percentiles of bootstrap resamples of the set's samples, in which the frames
of a clip and the members of an interactive group stay together. A threshold that a protocol chooses on the set is held
fixed. Differences are paired: both sides are resampled alike. A number of a run without brackets is no mean over
samples. An interval without width says that all samples scored alike, not that the number is certain.</p>
{% endif %}
</footer>
{% if scripted %}
<script>{{ script }}</script>
{% endif %}
</body>
</html>
"""
