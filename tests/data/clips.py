"""Real little videos (H.264 and AAC) for tests."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_clip(
    path: Path,
    seconds: float = 2.0,
    tone: float = 440.0,
    rate: int = 44100,
    fps: int = 10,
    size: tuple[int, int] = (96, 64),
    picture: bool = True,
    audio: bool = True,
    beep_at: float | None = None,
) -> Path:
    """Frame n is grey n*4; the sound is a stereo tone, or a click of 10 ms at ``beep_at``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=fps) if picture else None
        sound = out.add_stream("aac", rate=rate, layout="stereo") if audio else None
        if video:
            video.width, video.height, video.pix_fmt = *size, "yuv420p"
            for n in range(round(seconds * fps)):
                frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), n * 4, np.uint8), format="rgb24")
                frame.pts, frame.time_base = n, Fraction(1, fps)
                out.mux(video.encode(frame))
            out.mux(video.encode())
        if sound:
            t = np.arange(round(seconds * rate)) / rate
            wave = 0.5 * np.sin(2 * np.pi * tone * t).astype(np.float32)
            if beep_at is not None:
                wave *= (t >= beep_at) & (t < beep_at + 0.01)
            for start in range(0, len(wave), 1024):
                piece = av.AudioFrame.from_ndarray(np.stack([wave[start : start + 1024]] * 2), "fltp", "stereo")
                piece.sample_rate, piece.pts, piece.time_base = rate, start, Fraction(1, rate)
                out.mux(sound.encode(piece))
            out.mux(sound.encode())
    return path
