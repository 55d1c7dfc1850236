"""World scenes as real media."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from avloc.data.media import opened, probe
from avloc.world.scenes import NAMES
from avloc.world.video import write_videos


def test_clips_are_h264_with_aac_of_the_asked_length(tmp_path: Path) -> None:
    table = write_videos(tmp_path, 2, seconds=2.0, fps=8, size=64)
    rows = list(csv.reader(table.open()))
    assert [len(r) for r in rows] == [4, 4]
    for id, start, name, split in rows:
        assert name in NAMES
        assert split in ("train", "test")
        with opened(tmp_path / f"{id}_{int(start):06d}.mp4") as clip:
            assert clip.streams.video[0].codec_context.name == "h264"
            assert clip.streams.audio[0].codec_context.name == "aac"
        media = probe(tmp_path / f"{id}_{int(start):06d}.mp4")
        times, frames = zip(*[(t, media.pixels(f)) for t, f in media.frames()], strict=True)
        assert len(frames) == 16
        np.testing.assert_allclose(times, np.arange(16) / 8)
        assert len(media.hear().wave) / 16000 == pytest.approx(2.0, abs=0.07)
        assert np.abs(frames[0].astype(int) - frames[5]).mean() > 0.5  # something sways
