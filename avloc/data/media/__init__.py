"""The one place that opens containers, pictures and sounds, through PyAV (its own FFmpeg: no system package is needed).

`probe` says what a file holds; its `Media` gives pictures (`Media.at`, `Media.frames`) and sound (`Media.hear`,
`Media.blocks`, `Media.soundtrack`) on one clock. `read_clip` is what data preparation takes of a video, `read_picture`
a loose picture, `Library` the files of a folder by their ids, `MovieWriter` writes.
"""

from avloc.data.media.clips import Clip, audio_16k, centre_frame, duration, frames_at, read_clip
from avloc.data.media.files import PICTURES, SOUNDS, VIDEOS, MediaError, Member, Source, opened, signature
from avloc.data.media.folders import Library, clip_id, parse_id, without_suffix
from avloc.data.media.movies import MovieWriter
from avloc.data.media.packets import Damage
from avloc.data.media.pictures import (
    Pixels,
    decode_picture,
    eight_bits,
    load_picture,
    pixels,
    read_picture,
    refuse_large,
)
from avloc.data.media.reading import Heard, Media, Shown, probe
from avloc.data.media.sounds import FAULTS, Floats, faults, is_antiphase, mono
from avloc.data.media.waves import load_sound, read_sound

__all__ = [
    "FAULTS",
    "PICTURES",
    "SOUNDS",
    "VIDEOS",
    "Clip",
    "Damage",
    "Floats",
    "Heard",
    "Library",
    "Media",
    "MediaError",
    "Member",
    "MovieWriter",
    "Pixels",
    "Shown",
    "Source",
    "audio_16k",
    "centre_frame",
    "clip_id",
    "decode_picture",
    "duration",
    "eight_bits",
    "faults",
    "frames_at",
    "is_antiphase",
    "load_picture",
    "load_sound",
    "mono",
    "opened",
    "parse_id",
    "pixels",
    "probe",
    "read_clip",
    "read_picture",
    "read_sound",
    "refuse_large",
    "signature",
    "without_suffix",
]
