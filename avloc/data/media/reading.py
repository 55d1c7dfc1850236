"""A file with pictures and sound on one clock.

Second 0 is where the earlier of the two played streams begins; pictures and sound are cut on it. (Encoders pad the
beginning of a sound by a frame or two; where a container does not say so, the pictures' beginning counts.) Played are
the streams that a player takes: the default ones, and no attached pictures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soxr
from av.container import InputContainer
from av.stream import Disposition
from PIL import Image

from avloc.bounds import most, refuse_more
from avloc.data.media.files import REMEDY, SOUNDS, MediaError, Member, Source, opened, signature
from avloc.data.media.packets import Damage, chained, decoded_frames, decoded_sound, jumps_of, packets, placed
from avloc.data.media.pictures import Pixels, Turn, is_hdr, pixels, refuse_large, turn_of
from avloc.data.media.sounds import Floats, faults, mono, refuse_not_finite

__all__ = ["MOST_LOST", "Heard", "Media", "Shown", "longest", "probe"]

MOST_LOST = 0.5  # share of the sound wanted that may be lost before a clip is left out
SILENT_VIDEO = (".gif",)  # formats without sound, which lies beside them
# Formats whose packets carry their time, so that it is known after a seek. In others it is counted from the start.
TIMED = {"mov", "mp4", "matroska", "webm", "avi", "asf", "mpegts", "mpeg", "flv", "ogg", "nut", "mxf", "gif"}
TIMED_SOUND = TIMED | {"wav", "w64", "aiff", "caf", "flac"}
COUNTING = {"avi"}  # formats that count frames: where codecs reorder them, times follow from their number alone
TOLD_PADDING = {"ogg"}  # formats that say how much an encoder put before the first sample
JOINED = {"mpegts", "mpeg"}  # formats whose files are put one behind the other, each with a clock of its own
LONGEST_LOOK = 256 << 20  # bytes of a file looked through for such jumps; in a larger one the first clock counts
SEEK_FROM = 1.0  # seconds: what lies before is decoded from the start
WARM_UP = 1.0  # seconds before the sound wanted: codecs overlap, and their first packets come out wrong
STEPS_BACK = (0.0, 3.0, 12.0)  # seconds that a seek goes further back each time it lands late
EXACT = ("flac", "alac", "wavpack", "tta")  # sounds without padding
MOST_PADDING = 0.1  # seconds
QUIET = 1.0  # seconds of silence given at once, so that a long gap costs no memory


@dataclass(frozen=True)
class Shown:
    """A picture on the screen.

    Attributes:
        image: RGB.
        time: seconds at which it appears.
        asked: seconds at which it was asked for.
        turn: how the stored picture was brought upright.
        hdr: its high dynamic range was mapped to that of a screen.
        lost: the right one, or one that it builds on, could not be decoded; this is the last before.
        end: seconds at which pictures end, if that was met; then, and beyond, this is the last one.
    """

    image: Image.Image
    time: float
    asked: float
    turn: Turn
    lost: bool = False
    end: float | None = None
    hdr: bool = False

    @property
    def late(self) -> float:
        """Seconds by which pictures begin too late to be asked then: this is the first one."""
        return max(0.0, self.time - self.asked)


@dataclass(frozen=True)
class Heard:
    """A stretch of sound.

    Attributes:
        wave: float32 ``[n]``, mono, in about [-1, 1].
        rate: Hz.
        faults: see `avloc.data.media.sounds.faults`.
        gaps: seconds without sound packets, which are silence here; before the first one too.
        lost: seconds that could not be decoded; of a damaged file, gaps count.
    """

    wave: Floats
    rate: int
    faults: dict[str, float]
    gaps: float = 0.0
    lost: float = 0.0


@dataclass(frozen=True)
class Media:
    """A file that can be seen and heard. Every call opens it anew, so it can be handed to other processes.

    Attributes:
        source: the file; of the sound, ``beside`` if that is another one.
        video, audio: places of the played streams; None for none.
        cover: whether there is an attached picture.
        origin: second 0 on the file's own clock.
        picture_start, sound_start: seconds; one of them is 0, where padding is untold the sound's a little less.
        picture_end, sound_end: seconds, as the file says; None where it does not.
        width, height: stored pixels; 0 without pictures.
        aspect: width of a stored pixel by its height.
        fps: pictures a second, on average.
        sample_rate: Hz; 0 without sound.
        channels: 1 or 2, after mixing down more of them as players do.
        formats: names of the container.
        states: `avloc.data.media.files.signature` of both files when they were looked at first: pictures and sound of
            a file that changes in between do not belong together.
        counted: times of pictures follow from their number, see `COUNTING`.
        jumps: of each stream of a file whose clock jumps, see `jumps_of`.
    """

    source: Source
    beside: Source | None
    video: int | None
    audio: int | None
    cover: bool
    origin: float
    picture_start: float
    sound_start: float
    picture_end: float | None
    sound_end: float | None
    width: int
    height: int
    aspect: Fraction
    fps: Fraction
    sample_rate: int
    channels: int
    formats: frozenset[str]
    states: tuple[str, str] = ("", "")
    counted: bool = False
    jumps: Mapping[int, Sequence[tuple[int, float]]] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Length by what the file says of its streams; 0 where it says nothing (see `measured`)."""
        return max(self.picture_end or 0.0, self.sound_end or 0.0)

    def need_pictures(self) -> None:
        """Raises `MediaError` where there are none."""
        if self.video is None:
            why = "holds no moving pictures, only a cover" if self.cover else "has no picture (no video stream)"
            raise MediaError(f"{self.source} {why}. Give --image and --audio for a still.")

    def need_sound(self) -> None:
        """Raises `MediaError` where there is none."""
        if self.audio is None:
            raise MediaError(f"{self.source} has no sound (no audio stream). Leave it out, or give another file.")

    # Pictures

    def frames(self, damage: Damage | None = None) -> Iterator[tuple[float, av.VideoFrame]]:
        """Seconds and frame, in the order in which they are shown, from the first on; what does not decode is left
        out.

        Args:
            damage: is told what that was.
        """
        self.need_pictures()
        damage = Damage() if damage is None else damage
        with opened(self.source, self.states[0]) as container:
            last = -math.inf
            for frame, at, _ in self._decoded(container, damage, True):
                if at - self.origin > last:
                    last = at - self.origin
                    yield last, frame

    def pixels(self, frame: av.VideoFrame, upright: bool = True) -> Pixels:
        """A frame as it is meant to be seen, uint8 ``[H, W, 3]``; ``upright=False`` leaves it as it is stored."""
        return pixels(frame, turn_of(frame), self.aspect) if upright else pixels(frame, as_stored=True)

    def at(self, times: Sequence[float], upright: bool = True) -> list[Shown]:
        """The pictures on the screen at the given times.

        Before the first picture it is the first, beyond the end the last. However far key frames lie apart: after a
        seek, nothing is believed before a key frame, and a seek that lands late is taken back, in the end to the start.

        Args:
            times: ascending, seconds.
            upright: False leaves pictures as they are stored.

        Raises:
            MediaError: no picture, or unreadable.
        """
        self.need_pictures()
        if not times:
            return []
        steps: list[float | None] = []
        if self.formats & TIMED and not self.jumps and not self.counted:
            steps += [back for back in STEPS_BACK if times[0] - back > self.picture_start + SEEK_FROM]
        for back in [*steps, None]:
            shown = self._at(times, back, upright, threads=True)
            if shown and any(s.lost for s in shown):
                shown = self._at(times, back, upright, threads=False)  # threads tell late which packet was bad
            if shown:
                return shown
        raise MediaError(f"{self.source} holds no decodable frame. {REMEDY}")

    def _decoded(
        self, container: InputContainer, damage: Damage, threads: bool
    ) -> Iterator[tuple[av.VideoFrame, float, bool]]:
        return decoded_frames(container, self.video or 0, damage, threads, self.fps, self.jumps, self.counted)

    def _at(self, times: Sequence[float], back: float | None, upright: bool, threads: bool) -> list[Shown]:
        """One try: from the key frame before the first time, or from the start. [] where that begins too late."""
        shown: list[Shown] = []
        damage = Damage()
        with opened(self.source, self.states[0]) as container:
            stream = container.streams[self.video or 0]
            if back is not None and stream.time_base:
                try:
                    container.seek(int((times[0] - back + self.origin) / stream.time_base), stream=stream)
                except av.FFmpegError:
                    return []
            anchored = back is None
            last: tuple[av.VideoFrame, float, bool] | None = None

            def keep(of: tuple[av.VideoFrame, float, bool], end: float | None = None) -> None:
                frame, at, clean = of
                asked = times[len(shown)]
                lost = not clean or any(at < t - self.origin <= asked for t, _ in damage.lost)
                image = Image.fromarray(self.pixels(frame, upright))
                shown.append(Shown(image, round(at, 6), asked, turn_of(frame), lost, end, upright and is_hdr(frame)))

            for frame, time, clean in self._decoded(container, damage, threads):
                at = time - self.origin
                if not anchored:
                    if not frame.key_frame and not frame.format.name.startswith("yuva"):  # libvpx tells no key frames
                        continue
                    if at > times[0] + 1e-6:
                        return []
                    anchored = True
                # The frame before the first one that comes too late is the one on the screen.
                while len(shown) < len(times) and at > times[len(shown)] + 1e-6:
                    keep(last or (frame, at, clean))
                if len(shown) == len(times):
                    break
                last = (frame, at, clean)
            if last is None:
                return shown
            length = float((last[0].duration or 0) * (last[0].time_base or 0)) or float(1 / self.fps)
            while len(shown) < len(times):
                keep(last, round(last[1] + length, 6))
        return shown

    # Sound

    def blocks(
        self, start: float = 0.0, end: float = math.inf, damage: Damage | None = None
    ) -> Iterator[tuple[Floats, bool]]:
        """Sound without a gap from ``start`` on, at its own rate, until it or ``end`` is reached.

        Yields:
            float32 ``[channels, n]``, and whether it is real: False for the silence of a gap, or before the first
            sample. A long gap comes in pieces.
        """
        self.need_sound()
        own, place = self.sample_rate, round(start * self.sample_rate)
        last = math.inf if math.isinf(end) else round(end * own)
        quiet = round(QUIET * own)
        for at, wave in self._pieces(start, end, damage if damage is not None else Damage()):
            first = max(at, place)
            until = min(at + wave.shape[1], last)
            while place < min(first, last):
                n = int(min(quiet, first - place, last - place))
                yield np.zeros((self.channels, n), np.float32), False
                place += n
            if until > first:
                yield wave[:, first - at : int(until) - at], True
                place = int(until)

    def _pieces(self, start: float, end: float, damage: Damage) -> Iterator[tuple[int, Floats]]:
        """Decoded pieces ``[channels, n]``, each with the place of its first sample on the clock, until after ``end``.
        May begin long before ``start``."""
        own, source, state = self.sample_rate, self.beside or self.source, self.states[self.beside is not None]
        origin = self.origin if self.beside is None else 0.0
        with opened(source, state) as container:
            stream = container.streams[self.audio or 0]
            skip = start + origin - WARM_UP
            sought = False
            timed = self.formats & TIMED_SOUND and not self.jumps
            if skip > SEEK_FROM + origin and timed and stream.time_base:
                try:
                    container.seek(int(skip / stream.time_base), stream=stream)
                    sought = True
                except av.FFmpegError:
                    pass
            pieces = decoded_sound(container, stream, own, self.channels, damage, skip, self.jumps)
            first = next(pieces, None)
            if sought and (first is None or (first[0] or 0.0) > start + origin):
                # Late: a gap, or a seek that went wrong. Packets before are read, not decoded.
                damage.lost.clear()
                with opened(source, state) as again:
                    stream = again.streams[self.audio or 0]
                    pieces = decoded_sound(again, stream, own, self.channels, damage, skip, self.jumps)
                    yield from placed(pieces, origin, own, end)
                return
            if first is not None:
                yield from placed(chained(first, pieces), origin, own, end)

    def hear(self, rate: int = 16000, start: float = 0.0, seconds: float | None = None) -> Heard:
        """A stretch of the sound in mono. What lies before it is not decoded.

        Args:
            rate: Hz of the result, by soxr (high quality).
            start: seconds.
            seconds: length at most; fewer samples come back where the sound ends. None for all, up to an hour.

        Raises:
            MediaError: no sound, nothing in the window, not finite, or unreadable.
        """
        self.need_sound()
        wanted = longest() if seconds is None else seconds
        damage = Damage()
        pieces, gaps = [], 0.0
        for wave, sounds in self.blocks(start, start + wanted, damage):
            pieces.append(wave)
            gaps += 0.0 if sounds else wave.shape[1] / self.sample_rate
        if not pieces:
            why = f" ({len(damage.lost)} packets do not decode)" if damage.lost else ""
            raise MediaError(f"{self.source} has no sound between {start} and {start + wanted} s{why}. Leave it out.")
        both = np.ascontiguousarray(np.concatenate(pieces, 1))
        if seconds is None and both.shape[1] >= round(wanted * self.sample_rate):
            raise MediaError(f"{self.source} has more than {wanted / 3600:g} h of sound. Cut it, or leave it out.")
        refuse_not_finite(both, self.source)
        found, wave = faults(both), mono(both)
        if self.sample_rate != rate:
            wave = soxr.resample(wave, self.sample_rate, rate)
        wave = np.ascontiguousarray(wave[: round(wanted * rate)], dtype=np.float32)
        origin = self.origin if self.beside is None else 0.0
        lost = gaps if damage else 0.0
        lost = max(lost, damage.seconds(start + origin, start + wanted + origin))
        return Heard(wave, rate, found, round(gaps, 3), round(lost, 3))

    def soundtrack(self, rate: int, file: Path, least: float = 0.0) -> tuple[Floats, float]:
        """The whole sound in mono, unpacked into a file, so that memory does not grow with its length.

        Args:
            rate: Hz of the result.
            file: written; must stay while the samples are used.
            least: seconds; a shorter sound is followed by silence.

        Returns:
            float32 ``[N]`` in [-1, 1], mapped from ``file``, and the seconds at which the sound itself ends.

        Raises:
            MediaError: no sound, not finite, or unreadable.
        """
        self.need_sound()
        # The mean of the channels and the first one: which is heard is known at the end.
        change = soxr.ResampleStream(self.sample_rate, rate, 2, dtype="float32")
        together = apart = ends = 0.0
        n = 0
        with file.open("wb") as target:
            for wave, real in self.blocks():
                refuse_not_finite(wave, self.source)
                n += wave.shape[1]
                ends = n / self.sample_rate if real else ends
                if len(wave) == 2:
                    together += float(np.square(wave[0] + wave[1], dtype=np.float64).sum())
                    apart += float(np.square(wave[0] - wave[1], dtype=np.float64).sum())
                both = np.stack([wave.mean(0), wave[0]], 1)
                target.write(change.resample_chunk(both).clip(-1, 1).astype(np.float32).tobytes())
            target.write(
                change.resample_chunk(np.zeros((0, 2), np.float32), last=True).clip(-1, 1).astype(np.float32).tobytes()
            )
            size = round(max(ends, least) * rate) * 8
            target.truncate(size)
        if not ends:
            raise MediaError(f"{self.source} has a sound stream without sound. Add a sound track.")
        sound: Floats = np.memmap(file, np.float32, "r", shape=(size // 8, 2))
        cancels = apart > 0 and together < 0.01 * apart
        return sound[:, 1 if cancels else 0], ends

    def measured(self) -> Media:
        """The same with ends that were looked for packet by packet, for files that do not tell them or tell them
        wrongly."""
        ends: dict[int, float] = {}
        with opened(self.source, self.states[0]) as container:
            played = [container.streams[i] for i in (self.video, self.audio) if i is not None and not self.beside]
            played = played or [container.streams[self.video or 0]]
            for packet in packets(container, played, Damage(), self.jumps):
                if packet.pts is not None and packet.time_base:
                    end = float((packet.pts + (packet.duration or 0)) * packet.time_base) - self.origin
                    ends[packet.stream_index] = max(end, ends.get(packet.stream_index, 0.0))
        heard = self.sound_end if self.beside else ends.get(-1 if self.audio is None else self.audio)
        return replace(self, picture_end=ends.get(-1 if self.video is None else self.video), sound_end=heard)


def longest() -> float:
    """Seconds of sound that are read into memory."""
    return min(most("SECONDS"), 1e9)


def probe(source: Source | str, beside: Source | None = None) -> Media:
    """What a file holds and when.

    Args:
        source: any file that FFmpeg reads, or a member of an archive.
        beside: where the sound lies that belongs to pictures without one. A GIF's is looked for in its own folder.

    Raises:
        MediaError: absent, unreadable, or with pictures too large to be held.
    """
    source = Path(source) if isinstance(source, str) else source
    if beside is None and isinstance(source, Path) and source.suffix.lower() in SILENT_VIDEO:
        beside = next((p for s in SOUNDS if (p := source.with_suffix(s)).is_file()), None)
    state = signature(source)
    with opened(source, state) as container:
        try:
            refuse_more(len(container.streams), "STREAMS", f"{len(container.streams)} streams")
        except ValueError as e:
            raise MediaError(f"{source} cannot be read as a video ({e}). Convert it with FFmpeg.") from None
        video, audio = chosen(container.streams.video), chosen(container.streams.audio)
        cover = any(s.disposition & Disposition.attached_pic for s in container.streams.video)
        formats = frozenset(container.format.name.split(","))
        starts = {s.index: begin(s, container) for s in (video, audio) if s is not None}
        origin = min(starts.values(), default=0.0)
        padded = video and audio and not formats & TOLD_PADDING
        if padded and 0 < starts[video.index] - origin <= padding(audio):
            origin = starts[video.index]
        ends = {s.index: end_of(s, container, starts[s.index], origin) for s in (video, audio) if s is not None}
        played = [s for s in (video, audio) if s is not None]
        looked = formats & JOINED and size_of(source) <= LONGEST_LOOK
        jumps = jumps_of(container, played) if looked and played else {}
        width, height = (video.codec_context.width, video.codec_context.height) if video else (0, 0)
        if video:
            refuse_large(source, width, height)
        aspect = Fraction(video.sample_aspect_ratio or 1) if video else Fraction(1)
        rate = Fraction((video.average_rate or video.guessed_rate or 25) if video else 25)
        media = Media(
            source=source,
            beside=None,
            video=video.index if video else None,
            audio=audio.index if audio else None,
            cover=cover,
            origin=origin,
            picture_start=starts[video.index] - origin if video else 0.0,
            sound_start=starts[audio.index] - origin if audio else 0.0,
            picture_end=ends[video.index] if video else None,
            sound_end=ends[audio.index] if audio else None,
            width=width,
            height=height,
            aspect=aspect if 0.1 < aspect < 10 else Fraction(1),
            fps=rate if 0 < rate <= 1000 else Fraction(25),
            sample_rate=audio.codec_context.sample_rate if audio else 0,
            channels=min(2, audio.codec_context.channels) if audio else 0,
            formats=formats,
            states=(state, ""),
            counted=bool(video and formats & COUNTING and video.codec_context.has_b_frames),
            jumps=jumps,
        )
        if jumps:
            media = media.measured()
    if beside is None or media.audio is not None:
        return media
    other = probe(beside)
    other.need_sound()
    heard = ("audio", "sound_start", "sound_end", "sample_rate", "channels")
    states = (state, other.states[0])
    return replace(media, beside=beside, states=states, **{name: getattr(other, name) for name in heard})


def chosen(streams: Sequence[Any]) -> Any:
    """The stream that a player plays: a default one, no attached picture, no commentary; None for none."""
    aside = Disposition.comment | Disposition.hearing_impaired | Disposition.visual_impaired | Disposition.dub
    never = Disposition.attached_pic | Disposition.timed_thumbnails
    real = [s for s in streams if not s.disposition & never and s.codec_context is not None]
    real = [s for s in real if s.type != "audio" or s.codec_context.sample_rate > 0]
    return min(
        real,
        key=lambda s: (not s.disposition & Disposition.default, bool(s.disposition & aside), s.index),
        default=None,
    )


def begin(stream: Any, container: InputContainer) -> float:
    """Seconds on the file's own clock at which a stream begins."""
    if stream.start_time is not None and stream.time_base:
        return float(stream.start_time * stream.time_base)
    return (container.start_time or 0) / av.time_base


def padding(stream: Any) -> float:
    """Seconds that an encoder may have put before the first sample without saying so: up to two of its frames, as AAC
    and WMA in MPEG-TS, Matroska and ASF. A sound that begins so little before the pictures begins with them."""
    codec = stream.codec_context
    if codec.name.startswith(("pcm", "adpcm")) or codec.name in EXACT:
        return 0.0
    return min(2.1 * (codec.frame_size or 1024) / codec.sample_rate, MOST_PADDING) if codec.sample_rate else 0.0


def end_of(stream: Any, container: InputContainer, start: float, origin: float) -> float | None:
    """Seconds after the origin at which a stream ends, as the file says; None where it does not."""
    if stream.duration and stream.duration > 0 and stream.time_base:
        return start + float(stream.duration * stream.time_base) - origin
    if container.duration and container.duration > 0:
        whole = (container.start_time or 0) + container.duration
        return max(whole / av.time_base - origin, 0.0) or None
    return None


def size_of(source: Source) -> int:
    """Bytes of a file, or of a member of an archive."""
    return source.size if isinstance(source, Member) else source.stat().st_size
