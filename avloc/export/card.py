"""The card of an exported run: what it is, what it reaches and by which rule, what it was shown, on what terms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from avloc.report.cells import cell
from avloc.report.entries import Entry, Number, Tested
from avloc.report.results import MODEL
from avloc.weights import KNOWN

__all__ = ["Card", "licence_of"]

CUTS = {
    "test set": "chosen on the test set itself, which no user has",
    "fixed": "fixed beforehand",
    "map": "by each map",
    "truth": "by the true area",
    "none": "nowhere: all cuts count",
    "calibration": "chosen on calibration sets",
    "unknown": "not told",
}


def licence_of(source: str) -> str:
    """Licence of a weight file by its source; "unknown" where nobody tells."""
    if source.startswith("world:"):
        return "Apache-2.0"
    known = KNOWN.get(source)
    return known.licence if known else "none: initial values" if source == "random" else "unknown"


@dataclass(frozen=True)
class Card:
    """What a card is made of.

    Attributes:
        name: of the experiment.
        about: as ``config.json`` tells it.
        entry: the run's numbers; None for a run that was not tested.
        notes: of protocols, by name.
        warning: what its user must know first, "" for nothing.
        files: further files of the folder and what they are.
    """

    name: str
    about: Mapping[str, Any]
    entry: Entry | None
    notes: Mapping[str, str]
    warning: str
    files: Mapping[str, str]

    def text(self) -> str:
        """Markdown with the front matter that the Hugging Face hub reads."""
        method = self.about["identity"]["method"]
        trained = self.about["trained_on"]
        head = ["---", "library_name: avloc", "license: other", "license_name: see-below"]
        head += ["tags: [audio-visual, sound-source-localization]", "---", "", f"# {self.name}", ""]
        seed = self.about["identity"].get("seed")
        told = f"`{method}` of [avloc], " + (f"trained on `{trained}`" if trained else "which has nothing to train")
        head += [told + (f" with seed {seed}." if seed is not None and trained else "."), ""]
        head += [f"**{self.warning}**", ""] if self.warning else []
        parts = [self.use(), self.numbers(), self.data(), self.terms(), self.made()]
        return "\n".join(head) + "\n" + "\n\n".join(parts) + "\n\n[avloc]: https://pypi.org/project/avloc\n"

    def use(self) -> str:
        more = "".join(f"\n- `{file}`: {what}" for file, what in self.files.items())
        return (
            "## Use\n\n```python\nimport avloc\n\n"
            'model = avloc.load("FOLDER")  # this folder, or its OWNER/NAME on the hub\n'
            "found = model.find(image, sound, rate=44100)  # found.maps, .regions, .confidence, .overlay()\n```\n\n"
            "- `model.safetensors`: what was learned\n- `config.json`: how the method is built" + more
        )

    def numbers(self) -> str:
        if self.entry is None:
            return "## Numbers\n\nThe run was not tested."
        lines = ["## Numbers", "", "In percent, with 95 % bootstrap intervals over clips.", ""]
        others = sorted({row for tested in self.entry.sets.values() for row in tested.rows} - {MODEL})
        lines += ["| test set | clips or frames | protocol | metric | model | " + " | ".join(others) + " |"]
        lines += ["| --- " * (5 + len(others)) + "|"]
        for name, tested in self.entry.sets.items():
            for protocol, scored in tested.protocols.items():
                row = [name, str(tested.samples), protocol, scored.headline]
                row += [number_in(tested, each, protocol, scored.headline) for each in (MODEL, *others)]
                lines.append("| " + " | ".join(row) + " |")
        used = {p: s for tested in self.entry.sets.values() for p, s in tested.protocols.items()}
        lines += ["", "A protocol says how maps become numbers; where they are cut is decided:", ""]
        for protocol, scored in sorted(used.items()):
            note = f" ({self.notes[protocol]})" if self.notes.get(protocol) else ""
            lines.append(f"- `{protocol}`: {CUTS[scored.cut]}{note}")
        part = [f"{n}: {t.missing} missing" for n, t in self.entry.sets.items() if t.missing]
        part += [f"{n}: a part of the set only" for n, t in self.entry.sets.items() if not t.whole]
        notes = [f"{n}: {note}" for n, t in self.entry.sets.items() for note in t.notes]
        lines += ["", *(f"- {text}" for text in part + notes)] if part + notes else []
        if self.entry.threshold:
            chosen = ", ".join(self.entry.threshold.chosen_on)
            lines += ["", f"`avloc.load` cuts maps at {self.entry.threshold.value:g}, chosen on {chosen}."]
        return "\n".join(lines)

    def data(self) -> str:
        trained = self.about["trained_on"]
        if not trained:
            return "## Data\n\nNothing was trained. What the frozen files were trained on is their authors' to say."
        lines = ["## Data", "", f"Trained on `{trained}`.", ""]
        for name, tested in self.entry.sets.items() if self.entry else ():
            leaks = tested.leaks
            if leaks is None:
                lines.append(f"- {name}: whether its clips are in the training list was not checked")
            else:
                told = (
                    f"{leaks.by_clip} of {leaks.clips} clips are in the training list, {leaks.by_video} by their video"
                )
                lines.append(f"- {name}: {told}" + (f"; {leaks.unchecked} unchecked" if leaks.unchecked else ""))
        return "\n".join(lines)

    def terms(self) -> str:
        lines = ["## Licences", "", "That of the learned tensors is for whoever publishes them to state."]
        frozen = self.about["identity"].get("frozen") or {}
        if not frozen:
            return "\n".join([*lines, "No other file is needed."])
        carried = "the graphs of this folder hold their tensors" if self.files else "they are not in this folder"
        lines += [f"The method stands on these files, each under its own licence; {carried}:", ""]
        lines += ["| part | file | licence | SHA-256 | published in |", "| --- | --- | --- | --- | --- |"]
        for part, file in frozen.items():
            known = KNOWN.get(file["source"])
            place = known.homepage if known else "this package" if file["source"].startswith("world:") else ""
            digest = f"`{file['sha256'][:16]}`" if file["sha256"] else ""
            source = file["source"] if not file["source"].startswith("file:") else "a file of its maker"
            lines.append(f"| {part} | `{source}` | {licence_of(file['source'])} | {digest} | {place} |")
        if bound := sorted({f["source"] for f in frozen.values() if "NC" in licence_of(f["source"])}):
            lines += ["", f"**Not for commercial use: {', '.join(bound)}.**"]
        return "\n".join(lines)

    def made(self) -> str:
        packages = ", ".join(f"{k} {v}" for k, v in (self.about.get("packages") or {}).items() if v)
        lines = ["## How it was made", "", f"- avloc {self.about['avloc']}" + (f" with {packages}" if packages else "")]
        if self.entry:
            if self.entry.code.commit:
                changed = ", changed since" if self.entry.code.dirty else ""
                lines.append(f"- code: commit `{self.entry.code.commit}`{changed}")
            if p := self.entry.parameters:
                lines.append(f"- parameters: {p.trainable:,} trained of {p.total:,}")
            if c := self.entry.cost:
                flops = "" if c.flops is None else f"{c.flops / 1e9:.3g} GFLOPs and "
                lines.append(f"- an answer: {flops}{1000 * c.seconds:.3g} ms on {c.device}")
            if r := self.entry.reproduces:
                lines.append(f"- to be compared with {r.method} in table {r.table} of `{r.paper}`")
        return "\n".join(lines)


def number_in(tested: Tested, row: str, protocol: str, metric: str) -> str:
    """``37.18 [35.9, 38.4]``; "" where there is none."""
    found: Number | None = tested.rows.get(row, {}).get(protocol, {}).get(metric)
    if found is None:
        return ""
    bounds = found.low, found.high
    known = all(b is not None and math.isfinite(b) for b in bounds)
    text = cell(metric, found.value)
    return f"{text} [{cell(metric, found.low)}, {cell(metric, found.high)}]" if known else text
