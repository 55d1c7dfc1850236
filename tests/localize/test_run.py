from __future__ import annotations

import errno
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from avloc.data.media import MediaError, MovieWriter
from avloc.errors import UsageError
from avloc.localize.asking import Moment
from avloc.localize.drawing import STILL, TILE, legend, tinted, with_heat
from avloc.localize.reading import heard, probe, usual_window
from avloc.localize.regions import Maps, Threshold, regions
from avloc.localize.run import destinations, localize_still, localize_video
from avloc.methods.base import Localizer
from avloc.report.panels import overlay
from avloc.types import AVBatch, InputSpec, Localization

RATE = 44_100
SPEC = InputSpec(image_size=32, sample_rate=8000, seconds=1.0)


class Known(Localizer):
    """Hot where the picture is white; remembers what it was fed."""

    input_spec = SPEC

    def __init__(self):
        super().__init__()
        self.fed: list[AVBatch] = []

    def localize(self, batch: AVBatch) -> Localization:
        self.fed.append(batch)
        heat = (batch.image.float().mean(1, keepdim=True) > 128).float()
        return Localization(heat, torch.full((len(batch), 1), 0.75))


def tone(seconds: float, rate: int = RATE) -> np.ndarray:
    """A rising tone: no two places sound alike."""
    t = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * (200 * t + 150 * t**2))).astype(np.float32)


def picture(width=64, height=48, box=(16, 12, 32, 24)) -> np.ndarray:
    x0, y0, x1, y1 = box
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y0:y1, x0:x1] = 255
    return pixels


def write_video(path: Path, pictures, times, sound, rotation=0, codec="libx264", channels=1) -> Path:
    with av.open(str(path), "w") as target:
        video = target.add_stream(codec, rate=25)
        video.height, video.width = pictures[0].shape[:2]
        video.pix_fmt = "yuv420p" if codec == "libx264" else "yuvj420p"
        video.codec_context.time_base = Fraction(1, 90_000)
        if rotation:
            video.set_display_rotation(rotation)
        audio = target.add_stream("aac", rate=RATE) if sound is not None else None
        if audio is not None:
            audio.layout = "mono" if channels == 1 else "stereo"
        for pixels, time in zip(pictures, times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time * 90_000), Fraction(1, 90_000)
            target.mux(video.encode(frame))
        target.mux(video.encode(None))
        if audio is not None:
            samples = np.repeat(sound[None], channels, 0)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=audio.layout.name)
            frame.sample_rate, frame.pts = RATE, 0
            target.mux(audio.encode(frame))
            target.mux(audio.encode(None))
    return path


def steady(path: Path, seconds=2.0, pixels=None, **options) -> Path:
    times = np.arange(round(25 * seconds)) / 25
    return write_video(path, [picture() if pixels is None else pixels] * len(times), times, tone(seconds), **options)


def read_video(path: Path):
    with av.open(str(path)) as source:
        frames = [(f.time, f.to_ndarray(format="rgb24")) for f in source.decode(video=0)]
    with av.open(str(path)) as source:
        sound = np.concatenate([f.to_ndarray().mean(0) for f in source.decode(audio=0)])
        return (
            frames,
            sound,
            source.streams.video[0].codec_context.name,
            source.streams.audio[0].codec_context.name,
        )


CASES = Path(__file__).parents[3] / "shared" / "cases" / "media"


def run(path, out, model=None, **options):
    model = model or Known()
    return model, localize_video(model, path, out, progress=False, **options)


def test_overlay_keeps_frames_times_and_sound(tmp_path):
    clip = steady(tmp_path / "clip.mp4", channels=2)
    run(clip, tmp_path / "out")
    before, sound_before, *_ = read_video(clip)
    after, sound_after, video_codec, audio_codec = read_video(tmp_path / "out" / "overlay.mp4")
    assert (video_codec, audio_codec) == ("h264", "aac")
    assert [t for t, _ in after] == pytest.approx([t for t, _ in before], abs=1e-3)
    n = min(len(sound_before), len(sound_after))
    assert abs(len(sound_before) - len(sound_after)) < RATE / 25
    assert np.corrcoef(sound_before[:n], sound_after[:n])[0, 1] > 0.95
    drawn = after[25][1].astype(int)
    assert drawn[14:22, 18:30, 2].mean() < 180, "the white box is coloured"
    assert drawn[30:, 40:].max() < 30, "the black ground is not"


def test_regions_are_those_of_the_picture(tmp_path):
    _, result = run(steady(tmp_path / "clip.mp4"), tmp_path / "out", fps=5)
    assert json.loads((tmp_path / "out" / "regions.json").read_text()) == result
    assert (result["width"], result["height"]) == (64, 48)
    assert [t["time"] for t in result["times"]] == pytest.approx(np.arange(10) / 5, abs=0.001)
    for entry in result["times"]:
        assert entry["confidence"] == [0.75]
        (region,) = entry["regions"]
        assert region["box"] == pytest.approx([16, 12, 32, 24], abs=2)
        assert region["box_normalised"] == pytest.approx([0.25, 0.25, 0.5, 0.5], abs=1 / 32)
        assert region["centre"] == pytest.approx([24, 18], abs=1)
        assert region["area_share"] == pytest.approx(1 / 16, abs=0.02)


def test_each_frame_is_heard_with_the_sound_around_it(tmp_path):
    model, _ = run(steady(tmp_path / "clip.mp4", 4.0), tmp_path / "out", fps=1, batch_size=3)
    assert [len(b) for b in model.fed] == [3, 1]
    fed = torch.cat([b.audio for b in model.fed]).numpy()
    assert fed.shape == (4, 8000)
    whole = tone(4.0, 8000)
    for waveform, start in zip(fed, (0.0, 0.5, 1.5, 2.5), strict=True):
        expected = whole[round(start * 8000) :][:8000]
        assert np.corrcoef(waveform, expected)[0, 1] > 0.97
    images = torch.cat([b.image for b in model.fed])
    assert images.dtype == torch.uint8
    assert images.shape == (4, 3, 32, 32)


def test_shorter_window_is_completed_as_the_method_says(tmp_path):
    model, result = run(steady(tmp_path / "clip.mp4"), tmp_path / "out", fps=1, window_s=0.5)
    assert result["window_s"] == 0.5
    fed = model.fed[0].audio
    assert (fed[:, 4000:] == 0).all()
    assert fed[:, :4000].abs().amax(1).min() > 0.2


@pytest.mark.parametrize("size", [(65, 49), (31, 64)])
def test_odd_sizes(tmp_path, size):
    width, height = size
    clip = steady(tmp_path / "clip.mkv", 0.4, np.full((height, width, 3), 200, np.uint8), codec="mjpeg")
    _, result = run(clip, tmp_path / "out")
    assert (result["width"], result["height"]) == size
    assert result["times"][0]["regions"][0]["box"] == [0, 0, width, height]
    frames, *_ = read_video(tmp_path / "out" / "overlay.mp4")
    assert frames[0][1].shape == (height + height % 2, width + width % 2, 3)
    assert len(frames) == 10


@pytest.mark.parametrize(
    ("rotation", "box"), [(90, [12, 32, 24, 48]), (-90, [24, 16, 36, 32]), (180, [32, 24, 48, 36])]
)
def test_rotated_video_is_seen_upright(tmp_path, rotation, box):
    clip = steady(tmp_path / "clip.mp4", 0.4, rotation=rotation)
    _, result = run(clip, tmp_path / "out")
    assert result["times"][0]["regions"][0]["box"] == pytest.approx(box, abs=2)
    frames, *_ = read_video(tmp_path / "out" / "overlay.mp4")
    assert frames[0][1].shape[:2] == ((64, 48) if abs(rotation) == 90 else (48, 64))


def test_variable_frame_rate_keeps_its_times(tmp_path):
    times = [0.0, 0.04, 0.08, 0.5, 0.9, 0.94, 1.6]
    clip = write_video(tmp_path / "clip.mp4", [picture()] * 7, times, tone(1.7))
    _, result = run(clip, tmp_path / "out", fps=2)
    assert [t["time"] for t in result["times"]] == pytest.approx([0.0, 0.5, 1.6], abs=1e-3)
    frames, *_ = read_video(tmp_path / "out" / "overlay.mp4")
    assert [t for t, _ in frames] == pytest.approx(times, abs=1e-3)


def test_heat_between_analysed_frames_is_interpolated(tmp_path):
    white, black = np.full((48, 64, 3), 255, np.uint8), np.zeros((48, 64, 3), np.uint8)
    times = np.arange(26) / 25
    clip = write_video(tmp_path / "clip.mp4", [white] * 25 + [black], times, tone(1.04))
    shape = probe(clip)
    moments = iter(Moment(t, torch.full((1, 2, 2), h), torch.ones(1)) for t, h in ((0.0, 1.0), (1.0, 0.0)))
    heats = [float(heat.mean()) for _, _, heat, _ in with_heat(shape, moments)]
    assert heats == pytest.approx(np.clip(1 - times, 0, 1), abs=1e-3)


def test_strip_shows_the_surest_moment_of_each_sixth(tmp_path):
    run(steady(tmp_path / "clip.mp4", 3.0), tmp_path / "out", fps=4)
    strip = Image.open(tmp_path / "out" / "strip.png")
    assert strip.width == 6 * 320 + 5 * 4
    assert strip.height > 240


def test_two_regions_the_larger_first_and_specks_left_out():
    heat = np.zeros((100, 100), np.float32)
    heat[10:20, 10:20] = 0.6
    heat[50:80, 60:90] = 0.9
    heat[0, 99] = 1.0
    found = sorted(regions(heat, 0, 200, 50, 0.5), key=lambda r: -r["area_share"])
    assert [r["box"] for r in found] == [[120, 25, 180, 40], [20, 5, 40, 10]]
    assert [r["centre_normalised"] for r in found] == [[0.75, 0.65], [0.15, 0.15]]
    assert [r["area_share"] for r in found] == [0.09, 0.01]
    assert [r["confidence"] for r in found] == pytest.approx([0.9, 0.6], abs=1e-4)


def test_regions_of_a_diagonal_are_one():
    heat = np.kron(np.eye(2), np.ones((10, 10))).astype(np.float32)
    assert len(regions(heat, 0, 20, 20, 0.5)) == 1


def test_window_stays_inside_the_sound():
    sound = np.arange(100, dtype=np.float32)
    assert heard(sound, 0.0, 2.0, 10).tolist() == list(range(20))
    assert heard(sound, 5.0, 2.0, 10).tolist() == list(range(40, 60))
    assert heard(sound, 9.9, 2.0, 10).tolist() == list(range(80, 100))
    assert len(heard(sound, 5.0, 20.0, 10)) == 100


def test_a_method_that_sees_a_crop_is_drawn_on_that_crop(tmp_path):
    class Cropped(Known):
        input_spec = replace(SPEC, resize="crop")

    clip = steady(tmp_path / "clip.mp4", 0.4, np.full((48, 96, 3), 255, np.uint8))
    _, result = run(clip, tmp_path / "out", Cropped())
    assert result["times"][0]["regions"][0]["box"] == [24, 0, 72, 48]


def test_still(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", tone(3.0), RATE)
    result = localize_still(Known(), tmp_path / "a.png", tmp_path / "a.wav", tmp_path / "out")
    assert result["times"][0]["regions"][0]["box"] == pytest.approx([16, 12, 32, 24], abs=2)
    assert json.loads((tmp_path / "out" / "regions.json").read_text()) == result
    assert Image.open(tmp_path / "out" / "overlay.png").size == (64, 48)
    assert Image.open(tmp_path / "out" / "strip.png").width == 3 * 64 + 2 * 4


class Told(Known):
    """Hears a loud sound as the first phrase, silence as the second."""

    def embed_sound(self, batch: AVBatch) -> torch.Tensor:
        loud = (batch.audio.abs().amax(1) > 0.01).float()
        return torch.stack([loud, 1 - loud], dim=1)

    def embed_phrases(self, phrases) -> torch.Tensor:
        return torch.eye(len(phrases))[:, :2]


def test_what_a_sound_is_heard_as_is_written_beside_the_regions(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", tone(3.0), RATE)
    inputs = (tmp_path / "a.png", tmp_path / "a.wav")
    result = localize_still(Told(), *inputs, tmp_path / "out", phrases=["a horn", "nothing"])
    told = [{"phrase": "a horn", "cosine": 1.0}, {"phrase": "nothing", "cosine": 0.0}]
    assert result["times"][0]["heard_as"] == told
    assert json.loads((tmp_path / "out" / "regions.json").read_text()) == result
    plain = localize_still(Known(), *inputs, tmp_path / "plain", phrases=["a horn", "nothing"])
    assert "heard_as" not in plain["times"][0], "of a method that cannot be read"
    tall = Image.open(tmp_path / "out" / "strip.png").height - Image.open(tmp_path / "plain" / "strip.png").height
    assert tall > 10, "a line of text"
    sound = np.concatenate([tone(1.0), np.zeros(RATE, np.float32)])
    pixels = [picture()] * 20
    clip = write_video(tmp_path / "v.mp4", pixels, [i / 10 for i in range(20)], sound)
    _, result = run(clip, tmp_path / "video", Told(), fps=2.0, window_s=0.4, phrases=["a horn", "nothing"])
    assert [t["heard_as"][0]["phrase"] for t in result["times"]] == ["a horn", "a horn", "a horn", "nothing"]


def test_still_obeys_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=exif, quality=95)
    soundfile.write(tmp_path / "a.wav", tone(1.0), RATE)
    result = localize_still(Known(), tmp_path / "a.jpg", tmp_path / "a.wav", tmp_path / "out")
    assert (result["width"], result["height"]) == (48, 64)
    assert result["times"][0]["regions"][0]["box"] == pytest.approx([24, 16, 36, 32], abs=2)


def no_sound(folder):
    return write_video(folder / "mute.mp4", [picture()] * 5, np.arange(5) / 25, None)


def no_pictures(folder):
    soundfile.write(folder / "only.wav", tone(1.0), RATE)
    return folder / "only.wav"


def no_media(folder):
    (folder / "text.mp4").write_text("no video")
    return folder / "text.mp4"


def cut_off(folder):
    whole = steady(folder / "whole.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    return folder / "cut.mp4"


def little_sound(folder):
    return write_video(folder / "short.mp4", [picture()] * 5, np.arange(5) / 25, tone(0.02))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (no_sound, r"mute\.mp4 has no sound.*--audio"),
        (no_pictures, r"only\.wav holds no pictures.*--image"),
        (no_media, r"text\.mp4 cannot be decoded"),
        (cut_off, r"cut\.mp4 cannot be decoded"),
        (little_sound, r"short\.mp4 holds only 0\.0\d+ s of sound"),
        (lambda folder: folder / "none.mp4", r"none\.mp4 is not there"),
    ],
)
def test_bad_video_is_named_and_leaves_nothing(tmp_path, make, says):
    clip = make(tmp_path)
    with pytest.raises(MediaError, match=says):
        run(clip, tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_bad_still_is_named(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1.0), RATE)
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(MediaError, match=r"a\.png cannot be read"):
        localize_still(Known(), tmp_path / "a.png", tmp_path / "a.wav", tmp_path / "out")
    with pytest.raises(MediaError, match=r"b\.png does not exist"):
        localize_still(Known(), tmp_path / "b.png", tmp_path / "a.wav", tmp_path / "out")
    Image.fromarray(picture()).save(tmp_path / "c.png")
    soundfile.write(tmp_path / "short.wav", tone(0.01), RATE)
    with pytest.raises(MediaError, match=r"short\.wav"):
        localize_still(Known(), tmp_path / "c.png", tmp_path / "short.wav", tmp_path / "out")


@pytest.mark.parametrize("options", [{"fps": 0}, {"window_s": 2.0}, {"batch_size": 0}])
def test_options_out_of_range(tmp_path, options):
    with pytest.raises(ValueError, match="localize needs"):
        run(tmp_path / "clip.mp4", tmp_path / "out", **options)


@pytest.mark.parametrize("frame", [0, 3, -1])
def test_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch, frame):
    encode, seen = MovieWriter.picture, []

    def full(*args):
        seen.append(None)
        if len(seen) - 1 == frame % frames:
            raise OSError(errno.ENOSPC, "no space")
        encode(*args)

    clip = steady(tmp_path / "clip.mp4", 0.4)
    frames = sum(1 for _ in probe(clip).media.frames())
    monkeypatch.setattr(MovieWriter, "picture", full)
    with pytest.raises(OSError, match=r"No space left in .*out.*another folder"):
        run(clip, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_nothing_sounds_where_no_place_reaches_the_threshold_or_nothing_is_heard(tmp_path):
    class Lukewarm(Known):
        def localize(self, batch: AVBatch) -> Localization:
            answer = super().localize(batch)
            return Localization(0.6 * answer.heatmap, answer.confidence)

    pixels, times = [picture()] * 8, np.arange(8) / 4
    clip = write_video(tmp_path / "early.mp4", pixels, times, tone(0.8))
    _, result = run(
        clip, tmp_path / "out", Lukewarm(), window_s=0.2, threshold=Threshold(0.6, "universal, chosen on x")
    )
    assert (result["threshold"], result["threshold_from"]) == (0.6, "universal, chosen on x")
    assert [bool(t["regions"]) for t in result["times"]] == [True, True, True, True, False, False, False, False]
    assert {t["nothing_sounds"] for t in result["times"][4:]} == {"its sound is silent"}
    assert not any("nothing_sounds" in t for t in result["times"][:4])
    frames, *_ = read_video(tmp_path / "out" / "overlay.mp4")
    assert frames[6][1][16:22, 20:28].min() > 230, "what is not heard is not drawn either"
    assert frames[1][1][16:22, 20:28, 2].max() < 200
    _, result = run(clip, tmp_path / "cold", Lukewarm(), fps=1, threshold=0.61)
    assert not any(t["regions"] for t in result["times"])
    assert result["times"][0]["nothing_sounds"] == "no region of the map reaches 0.61"
    assert result["threshold_from"] == "as asked"


def test_the_usual_window_tells_moments_apart():
    seconds = {duration: usual_window(replace(SPEC, seconds=10.0), duration) for duration in (0.5, 4, 10, 30, 600)}
    assert seconds == {0.5: 1.0, 4: 1.0, 10: 2.0, 30: 6.0, 600: 10.0}
    assert usual_window(replace(SPEC, seconds=0.5), 100.0) == 0.5


class Named(Known):
    """Two sources: what is white, which is a dog, and nothing, which fills up."""

    def class_names(self):
        return {4: "dog", 5: "cat"}

    def localize(self, batch: AVBatch) -> Localization:
        heat = super().localize(batch).heatmap
        label = torch.tensor([[4, -1]]).expand(len(batch), 2)
        return Localization(torch.cat([heat, 0 * heat], 1), torch.full(label.shape, 0.5), label)


def test_class_names_and_saved_maps(tmp_path):
    _, result = run(steady(tmp_path / "clip.mp4", 1.0), tmp_path / "out", Named(), fps=2, batch_size=1, maps="npz")
    for entry in result["times"]:
        assert entry["classes"] == ["dog", ""]
        assert [(r["source"], r["class"]) for r in entry["regions"]] == [(0, "dog")]
    with np.load(tmp_path / "out" / "maps.npz") as saved:
        assert saved["time"] == pytest.approx([t["time"] for t in result["times"]])
        assert (saved["heatmap"].shape, saved["heatmap"].dtype) == ((2, 2, 32, 32), np.float16)
        assert saved["heatmap"][:, 0].mean() == pytest.approx(1 / 16, abs=0.02)
        assert not saved["heatmap"][:, 1].any()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "maps.npz",
        "overlay.mp4",
        "regions.json",
        "strip.png",
    ]


def test_saved_maps_of_varying_sources_are_filled_up(tmp_path):
    maps = Maps(tmp_path)
    maps.add(Moment(0.0, torch.ones(1, 2, 3), torch.ones(1)))
    maps.add(Moment(0.5, torch.stack([torch.full((2, 3), 0.25), torch.full((2, 3), 0.5)]), torch.ones(2)))
    maps.add(Moment(1.0, torch.full((1, 4, 6), 0.75), torch.ones(1)))
    with np.load(maps.close()) as saved:
        assert saved["heatmap"][:, :, 0, 0].tolist() == [[1.0, 0.0], [0.25, 0.5], [0.75, 0.0]]
        assert saved["heatmap"].shape == (3, 2, 2, 3)


def test_overlay_loads_while_it_plays_and_says_its_colours(tmp_path):
    run(steady(tmp_path / "clip.mp4", 0.4), tmp_path / "out")
    content = (tmp_path / "out" / "overlay.mp4").read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat")
    with av.open(str(tmp_path / "out" / "overlay.mp4")) as source:
        frame = next(source.decode(video=0))
        assert (frame.colorspace, frame.color_range) == (1, 1), "BT.709, limited range"


@pytest.mark.parametrize("size", [(1600, 8), (8, 1600)])
def test_strip_is_bounded_whatever_the_picture(tmp_path, size):
    pixels = np.full((size[1], size[0], 3), 255, np.uint8)
    run(steady(tmp_path / "clip.mp4", 0.2, pixels), tmp_path / "out", fps=5)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", tone(1.0), RATE)
    localize_still(Known(), tmp_path / "a.png", tmp_path / "a.wav", tmp_path / "still")
    for folder, (width, height) in ((tmp_path / "out", TILE), (tmp_path / "still", (3 * STILL[0] + 8, STILL[1]))):
        strip = Image.open(folder / "strip.png")
        assert strip.width <= width
        assert strip.height <= height + 300


def test_legend_shows_the_threshold(tmp_path):
    drawn = legend(600, Threshold(0.25))
    assert drawn.shape[1] == 600
    bar = drawn[10, 17 : 17 + 160].astype(int)
    assert bar[0, 2] > bar[0, 0], "cold on the left"
    assert bar[-1, 0] > bar[-1, 2], "hot on the right"
    assert np.argwhere((drawn[4, 17 : 17 + 160] == 0).all(-1)).mean() == pytest.approx(0.25 * 160, abs=2)


def test_tinted_frames_are_those_of_the_overlay():
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(48, 64, 3), dtype=np.uint8)
    heat = torch.from_numpy(rng.random((12, 16), dtype=np.float32))
    exact = overlay(pixels.transpose(2, 0, 1), heat, alpha=0.7).astype(int)
    assert np.abs(tinted(pixels, heat, 0.7) - exact).max() <= 4
    assert np.abs(tinted(pixels, heat, 0.7) - exact).mean() < 1.5
    assert (np.abs(tinted(pixels, torch.zeros(2, 2)).astype(int) - pixels) <= 1).all()


def test_samples_that_are_no_numbers_are_refused_by_name(tmp_path):
    sound = tone(1.0)
    sound[5000] = np.nan
    soundfile.write(tmp_path / "nan.wav", sound, RATE, subtype="FLOAT")
    Image.fromarray(picture()).save(tmp_path / "a.png")
    with pytest.raises(MediaError, match=r"nan\.wav.*NaN or infinite"):
        localize_still(Known(), tmp_path / "a.png", tmp_path / "nan.wav", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not here")
def test_wmv_and_a_song_with_a_cover(tmp_path):
    _, result = run(CASES / "clip.wmv", tmp_path / "out", fps=1)
    assert result["times"]
    assert len(read_video(tmp_path / "out" / "overlay.mp4")[0]) > 10
    with pytest.raises(MediaError, match=r"songCover00_000010\.m4a holds no moving pictures.*use --image"):
        run(CASES / "stream_choice" / "songCover00_000010.m4a", tmp_path / "song")


def test_a_method_of_several_pictures_is_refused_before_any_work(tmp_path):
    class Several(Known):
        input_spec = replace(SPEC, frames=5)

    with pytest.raises(UsageError, match="wants 5 frames"):
        run(tmp_path / "none.mp4", tmp_path / "out", Several())


def test_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UsageError, match=r"out cannot be written to.*-o"):
        run(steady(tmp_path / "clip.mp4", 0.2), tmp_path / "out")


def test_every_clip_has_a_folder_of_its_own():
    clips = [Path("a/-x.mp4"), Path("a/-x.mkv"), Path("b/-x.mp4"), Path("y.mp4")]
    assert destinations(clips, Path("o")) == [Path("o/-x.mp4"), Path("o/-x.mkv"), Path("o/-x.mp4-2"), Path("o/y")]
