"""Packets and what they decode to, on a file's own clock, with what is damaged left out and noted."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.container import InputContainer

from avloc.data.media.sounds import Floats, downmix

__all__ = ["Damage", "chained", "decoded_frames", "decoded_sound", "jumps_of", "packets", "placed"]

JUMP_BACK, JUMP_AHEAD = 1.0, 10.0  # seconds: a longer way between packets is another clock, and no gap
JITTER = 0.03  # seconds: containers round times; a longer distance is a gap
HOPELESS = 32  # errors in a row after which a file is not read on


@dataclass
class Damage:
    """What could not be decoded.

    Attributes:
        lost: times and lengths of packets, in seconds on the file's own clock.
        errors: of the container itself.
    """

    lost: list[tuple[float, float]] = field(default_factory=list)
    errors: int = 0

    def __bool__(self) -> bool:
        return bool(self.lost or self.errors)

    def add(self, packet: av.Packet[Any]) -> None:
        """A packet that does not decode."""
        at = packet.pts if packet.pts is not None else packet.dts
        if at is not None and packet.time_base:
            self.lost.append((float(at * packet.time_base), float((packet.duration or 0) * packet.time_base)))
        else:
            self.errors += 1

    def seconds(self, start: float, end: float) -> float:
        """Length of what is lost between two times."""
        return sum(max(0.0, min(at + length, end) - max(at, start)) for at, length in self.lost)


def jumps_of(container: InputContainer, streams: Sequence[Any]) -> dict[int, list[tuple[int, float]]]:
    """Where the clock of a file that was put together of several jumps: of each stream, numbers of packets, and the
    seconds that are added to times from each of them on, so that one part follows the other; {} where it does not."""
    jumps: dict[int, list[tuple[int, float]]] = {s.index: [] for s in streams}
    count, expected, added = Counter[int](), dict[int, float](), dict.fromkeys(jumps, 0.0)
    for packet in packets(container, streams, Damage()):
        i, ticks = packet.stream_index, packet.dts if packet.dts is not None else packet.pts
        number = count[i]
        count[i] += 1
        if ticks is None or not packet.time_base:
            continue
        own = float(ticks * packet.time_base)
        ahead = own + added[i] - expected.get(i, own + added[i])
        if not -JUMP_BACK <= ahead <= JUMP_AHEAD:
            # As the other stream jumped, where that fits, so that both stay together.
            others = [a for j, a in added.items() if j != i and abs(own + a - expected[i]) < JUMP_BACK]
            added[i] = others[0] if others else expected[i] - own
            jumps[i].append((number, added[i]))
        expected[i] = own + added[i] + float((packet.duration or 0) * packet.time_base)
    return jumps if any(jumps.values()) else {}


def packets(
    container: InputContainer,
    streams: Sequence[Any],
    damage: Damage,
    jumps: Mapping[int, Sequence[tuple[int, float]]] | None = None,
) -> Iterator[av.Packet[Any]]:
    """All packets; where the container is damaged, reading goes on behind it. Times are moved as `jumps_of` says, if
    they are read from the start."""
    failed = 0
    count, rest = Counter[int](), {i: deque(of) for i, of in (jumps or {}).items()}
    added: dict[int, float] = {}
    while failed < HOPELESS:
        try:
            for packet in container.demux(*streams):
                failed = 0
                if rest and packet.time_base:
                    i = packet.stream_index
                    while rest.get(i) and rest[i][0][0] <= count[i]:
                        added[i] = rest[i].popleft()[1]
                    count[i] += 1
                    if moved := round(added.get(i, 0.0) / packet.time_base):
                        packet.pts = None if packet.pts is None else packet.pts + moved
                        packet.dts = None if packet.dts is None else packet.dts + moved
                yield packet
            return
        except (av.FFmpegError, EOFError):
            failed += 1
            damage.errors += 1


def decoded_frames(
    container: InputContainer,
    index: int,
    damage: Damage,
    threads: bool,
    fps: Fraction,
    jumps: Mapping[int, Sequence[tuple[int, float]]] | None = None,
    counted: bool = False,
) -> Iterator[tuple[av.VideoFrame, float, bool]]:
    """Frames that decode, with their seconds on the file's own clock, and whether they are whole: False after
    something that they may build on was lost, until the next key frame. Where they are ``counted``, the next frame has
    the time of the next packet."""
    stream: Any = container.streams[index]
    stream.thread_type = "AUTO" if threads else "NONE"
    suspect, last = math.inf, -math.inf
    order = deque[float]()
    decoder = alpha_decoder(stream)
    for packet in packets(container, [stream], damage, jumps):
        if counted and packet.dts is not None and packet.size and packet.time_base:
            order.append(float(packet.dts * packet.time_base))
        try:
            frames = packet.decode() if decoder is None else decoder.decode(packet if packet.size else None)
        except av.FFmpegError:
            damage.add(packet)
            if order:
                order.pop()
            if damage.lost and not packet.is_disposable:
                suspect = min(suspect, damage.lost[-1][0])
            continue
        for frame in frames:
            at = order.popleft() if order else frame.time
            if at is None:
                at = last + float(1 / fps) if last > -math.inf else 0.0
            last = at
            if frame.is_corrupt:
                damage.lost.append((at, float(1 / fps)))
                suspect = min(suspect, at)
            elif frame.key_frame and at >= suspect:
                suspect = math.inf
            yield frame, at, at < suspect


def alpha_decoder(stream: Any) -> Any:
    """A decoder that sees the transparency of WebM, which FFmpeg's own ones leave out; None for other streams."""
    if not any(key.lower() == "alpha_mode" and value == "1" for key, value in stream.metadata.items()):
        return None
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    return av.CodecContext.create(name, "r") if name else None


def decoded_sound(
    container: InputContainer,
    stream: Any,
    rate: int,
    channels: int,
    damage: Damage,
    skip: float,
    jumps: Mapping[int, Sequence[tuple[int, float]]] | None = None,
) -> Iterator[tuple[float | None, Floats]]:
    """Seconds on the file's own clock and samples ``[channels, n]``; packets that end before ``skip`` are not
    decoded."""
    # Interleaved: PyAV crashes on planes of eight channels and more.
    change = av.AudioResampler(format="flt", rate=rate)
    form = None
    for packet in packets(container, [stream], damage, jumps):
        if ends_before(packet, skip):
            continue
        try:
            frames: list[Any] = packet.decode()
        except av.FFmpegError:
            damage.add(packet)
            continue
        for frame in frames:
            now = (frame.format.name, frame.layout.name, frame.sample_rate)
            if form not in (None, now):
                change = av.AudioResampler(format="flt", rate=rate)
            form = now
            at: float | None = frame.time
            names = [c.name for c in frame.layout.channels]
            if now[0] == "fltp" and frame.sample_rate == rate and len(names) <= 2:
                yield at, downmix(frame.to_ndarray(), names, channels)
                continue
            for part in change.resample(frame):
                wave = part.to_ndarray().astype(np.float32, copy=False).reshape(-1, len(names)).T
                yield at, downmix(wave, names, channels)
                at = None


def ends_before(packet: av.Packet[Any], time: float) -> bool:
    """Whether a packet of sound is over before ``time``, in seconds on the file's own clock."""
    if packet.pts is None or not packet.size or not packet.time_base:
        return False
    return float((packet.pts + (packet.duration or 0)) * packet.time_base) < time


def chained(first: tuple[float | None, Floats], rest: Iterator[tuple[float | None, Floats]]) -> Iterator[Any]:
    """The first and the rest."""
    yield first
    yield from rest


def placed(
    pieces: Iterator[tuple[float | None, Floats]], origin: float, rate: int, end: float
) -> Iterator[tuple[int, Floats]]:
    """Pieces with the place of their first sample on the clock; small errors of the container's times are none."""
    expected: int | None = None
    for time, wave in pieces:
        at = expected or 0
        if time is not None:
            at = round((time - origin) * rate)
            if expected is not None and abs(at - expected) <= JITTER * rate:
                at = expected
        if at >= end * rate:
            yield at, wave[:, :0]  # what lies before is a gap, not the end
            return
        yield at, wave
        expected = at + wave.shape[1]
