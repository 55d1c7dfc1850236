"""World scenes as real media."""

from __future__ import annotations

import csv
from pathlib import Path

import av
import numpy as np

from avloc.world.scenes import NAMES
from avloc.world.video import write_videos


def test_clips_are_h264_with_aac_of_the_asked_length(tmp_path: Path) -> None:
    table = write_videos(tmp_path, 2, seconds=2.0, fps=8, size=64)
    rows = list(csv.reader(table.open()))
    assert [len(r) for r in rows] == [4, 4]
    for id, start, name, split in rows:
        assert name in NAMES
        assert split in ("train", "test")
        with av.open(str(tmp_path / f"{id}_{int(start):06d}.mp4")) as clip:
            assert clip.streams.video[0].codec_context.name == "h264"
            assert clip.streams.audio[0].codec_context.name == "aac"
            frames = [f.to_ndarray(format="rgb24") for f in clip.decode(video=0)]
        assert len(frames) == 16
        assert np.abs(frames[0].astype(int) - frames[5]).mean() > 0.5  # something sways
