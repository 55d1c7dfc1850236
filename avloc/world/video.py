"""World scenes as real video files: H.264 and AAC in an mp4, so that data preparation meets real media."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from avloc.data.media import MovieWriter
from avloc.world.scenes import NAMES, Scenes, render, sample_scenes
from avloc.world.sounds import RATE, sound

__all__ = ["write_video", "write_videos"]


def write_videos(
    folder: Path, count: int, seconds: float = 10.0, fps: int = 12, size: int = 192, seed: int = 0
) -> Path:
    """Write ``count`` clips named as VGGSound names its own, and their list.

    Args:
        folder: receives ``<id>_<start>.mp4`` and ``vggsound.csv`` (id, start second, class, split; no header).
        count: number of clips.
        seconds: length of each.
        fps: frames a second.
        size: side in pixels, even.
        seed: the same seed gives the same scenes and sounds.

    Returns:
        path of the csv.
    """
    rng = np.random.default_rng(seed)
    scenes = sample_scenes(rng, count)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "vggsound.csv").open("w", newline="") as f:
        table = csv.writer(f)
        for i in range(count):
            id, start = f"world{seed:02d}{i:04d}", 10 * (i % 3)
            label = int(scenes.label[i, 0])
            write_video(folder / f"{id}_{start:06d}.mp4", scenes[i : i + 1], sound(rng, label, seconds), fps, size)
            table.writerow([id, start, NAMES[label], "test" if i % 10 == 9 else "train"])
    return folder / "vggsound.csv"


def write_video(path: Path, scene: Scenes, wave: np.ndarray, fps: int = 12, size: int = 192) -> None:
    """One scene whose first object sways, with a sound.

    Args:
        path: an mp4.
        scene: one scene.
        wave: float32 ``[T]`` at 16 kHz; its length sets the video's.
        fps: frames a second.
        size: side in pixels, even.
    """
    count = round(len(wave) / RATE * fps)
    time = torch.arange(count) / fps
    pose = scene.pose.repeat(count, 1, 1)
    pose[:, 0, 3] += 0.15 * torch.sin(2 * torch.pi * 0.7 * time)
    fields = {
        f: getattr(scene, f).repeat(count, *[1] * (getattr(scene, f).ndim - 1)) for f in scene.__dataclass_fields__
    }
    frames, _ = render(replace(scene, **(fields | {"pose": pose})), size)
    with MovieWriter(path, size, size, fps, RATE, 1, {"crf": "18", "preset": "veryfast"}) as movie:
        for i, picture in enumerate(frames.permute(0, 2, 3, 1).contiguous().numpy()):
            movie.picture(i / fps, picture)
        movie.sound(wave[None].astype(np.float32))
