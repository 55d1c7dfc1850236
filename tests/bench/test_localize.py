"""The bench of localize counts what it says it counts."""

from __future__ import annotations

import json
from pathlib import Path

import av
import pytest

from avloc.bench import localize as bench
from avloc.cli import main


def test_it_prints_a_ratio_and_both_peaks(capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench", "localize", "--seconds", "1", "--fps", "2", "--height", "48", "--steps", "1", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["moments"] == 2
    assert 0 < told["ratio"] == pytest.approx(told["passes_s"] / told["localize_s"])
    assert 0 < told["peak_bytes"] < 1.2 * told["longer_peak_bytes"]


def test_the_clip_is_as_long_and_large_as_asked(tmp_path: Path) -> None:
    with av.open(str(bench.write_clip(tmp_path / "clip.mp4", 0.4, 90))) as source:
        frames = [f.to_ndarray(format="rgb24") for f in source.decode(video=0)]
    assert len(frames) == 10
    assert frames[0].shape == (90, 160, 3)
    assert abs(frames[0].astype(int) - frames[1]).mean() > 1, "it moves"
