"""Seeded damage: what disks, lines and strangers do to files.

A mutator takes bytes (or parsed JSON, or the members of a tar) and a `random.Random`, and gives what became of them.
The same seed gives the same damage.
"""

from __future__ import annotations

import io
import json
import re
import struct
import tarfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from random import Random
from typing import Any

__all__ = ["BYTES", "Members", "damaged", "json_text", "strange", "strange_text", "tar_of", "torn_json", "torn_tar"]

Members = list[tuple[str, bytes]]

# ---- any file


def flip(data: bytes, random: Random) -> bytes:
    """One to eight bits are others."""
    out = bytearray(data)
    for _ in range(random.randint(1, 8)):
        place = random.randrange(len(out))
        out[place] ^= 1 << random.randrange(8)
    return bytes(out)


def cut(data: bytes, random: Random) -> bytes:
    """The end is missing."""
    return data[: random.randrange(len(data))]


def run(data: bytes, random: Random) -> tuple[int, int]:
    """A stretch: where it begins and ends."""
    start = random.randrange(len(data))
    return start, min(len(data), start + 1 + int(len(data) * random.random() ** 3))


def zeros(data: bytes, random: Random) -> bytes:
    """A stretch is zeros, as of a block that was never written."""
    start, end = run(data, random)
    return data[:start] + bytes(end - start) + data[end:]


def noise(data: bytes, random: Random) -> bytes:
    """A stretch is something else."""
    start, end = run(data, random)
    return data[:start] + random.randbytes(end - start) + data[end:]


def dropped(data: bytes, random: Random) -> bytes:
    """A stretch is missing."""
    start, end = run(data, random)
    return data[:start] + data[end:]


def doubled(data: bytes, random: Random) -> bytes:
    """A stretch is there twice."""
    start, end = run(data, random)
    return data[:end] + data[start:end] + data[end:]


def swapped(data: bytes, random: Random) -> bytes:
    """Two halves of a stretch have changed places."""
    start, end = run(data, random)
    middle = (start + end) // 2
    return data[:start] + data[middle:end] + data[start:middle] + data[end:]


def grown(data: bytes, random: Random) -> bytes:
    """Something follows the end."""
    return data + random.choice([bytes(512), random.randbytes(random.randint(1, 2000)), data])


def empty(data: bytes, random: Random) -> bytes:
    return b"" if random.random() < 0.3 else data[: random.randint(1, 16)]


def number(data: bytes, random: Random) -> bytes:
    """A binary number in the file's first kilobyte, or anywhere, is an extreme one."""
    size = random.choice([1, 2, 4, 8])
    place = random.randrange(max(1, min(len(data), 1024 if random.random() < 0.7 else len(data)) - size))
    value = random.choice([0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 3, 65535])
    raw = (value % 2 ** (8 * size)).to_bytes(size, random.choice(["little", "big"]))
    return data[:place] + raw + data[place + size :]


def digits(data: bytes, random: Random) -> bytes:
    """A number that is written in digits is another one."""
    found = list(re.finditer(rb"\d+", data[:200_000]))
    if not found:
        return flip(data, random)
    at = random.choice(found)
    n = len(at[0])
    new = random.choice([b"9" * n, b"0" * n, b"7" * n, b"-" + b"1" * (n - 1), b"1e9", b"", b"99999999999999999999"])
    return data[: at.start()] + new + data[at.end() :]


def foreign(data: bytes, random: Random) -> bytes:
    """Another kind of file under this name."""
    return random.choice(FOREIGN)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(touch ran) (w) file\nshowpage\n%%EOF\n"
FOREIGN = (
    b"<!DOCTYPE html><html><body>404</body></html>",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    EPS,
    b"GIF89a\xff\xff\xff\xff\x80\x00\x00" + bytes(800),
    b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    b"ffconcat version 1.0\nfile '/etc/passwd'\n",
    b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93\x8c\ttouch ran\x85R.",
    b"P6\n60000 60000\n255\n",
    b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\1\0" + b"\xff" * 12 + b"\x20\0data\xff\xff\xff\xff",
    b"PK\x05\x06" + bytes(18),
    b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"\xff\xfe" + "id\n1".encode("utf-16-le"),
    b"\x00" * 1024,
)

BYTES: tuple[Callable[[bytes, Random], bytes], ...] = (
    *(flip, cut, zeros, noise, dropped, doubled, swapped, grown, empty, number, digits, foreign),
)


def damaged(data: bytes, random: Random) -> bytes:
    """One or two kinds of damage."""
    for _ in range(1 if random.random() < 0.75 else 2):
        data = random.choice(BYTES)(data, random) if data else b""
    return data


# ---- JSON


def strange_text(random: Random, secret: str = "/etc/passwd") -> str:
    """What a stranger writes where a name is expected."""
    return random.choice(
        [
            *("", " ", ".", "..", "/", "../../../../etc/passwd", secret, f"file://{secret}", f"pipe:cat {secret}"),
            *("pipe:touch ran", "|touch ran", "$(touch ran)", "`touch ran`", "http://127.0.0.1:9/x.tar", "ftp://x/y"),
            *("=cmd|'/c touch ran'!A1", "@SUM(1)", "+1", "-1+1", "<script>alert(1)</script>", "<img src=x onerror=1>"),
            *("[bold red]x[/]", "[/]", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "a|b", "a\nb", "a\rb", "\\input{x}"),
            *("%s%s%n", "{0}", "{{7*7}}", "con", "a" * 5000, "\u202eabc", "\ud800", "\0", "é", "日本"),
            *("!!python/object/apply:os.system ['touch ran']", "os.system", "__import__('os').system('touch ran')"),
        ]
    )


def strange(random: Random, secret: str = "/etc/passwd") -> Any:
    """A value of any kind, rarely a sensible one."""
    return random.choice(
        [
            *(None, True, False, 0, 1, -1, 2, 255, 65536, 2**31, 2**63, 2**70, -(2**63), 10**400),
            *(0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), float("-inf")),
            *(
                [],
                {},
                [[]],
                [None],
                {"": None},
                ["a"],
                [0] * 1000,
                {"a": {"b": {}}},
                nested(random.choice([5, 60, 900])),
            ),
            *(strange_text(random, secret) for _ in range(8)),
        ]
    )


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value] if depth % 2 else {"a": value}
    return value


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values inside of parsed JSON."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path] if path else []
    for key, child in children:
        found += places(child, (*path, key))
    return found


def torn_json(content: Any, random: Random, secret: str = "/etc/passwd") -> Any:
    """Parsed JSON in which one to three values are strange, missing, doubled or under another name."""
    content = deepcopy(content)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        found = places(content)
        if not found:
            return strange(random, secret)
        *way, last = random.choice(found)
        parent = content
        for step in way:
            parent = parent[step]
        kind = random.randrange(10)
        if kind < 6:
            parent[last] = strange(random, secret)
        elif kind == 6:
            del parent[last]
        elif kind == 7 and isinstance(parent, list):
            parent[last:last] = [parent[last]] * random.choice([1, 2, 300])
        elif kind == 8 and isinstance(parent, dict):
            parent[str(strange_text(random, secret))] = parent.pop(last)
        else:
            parent[last] = str(parent[last]) if not isinstance(parent[last], str) else [parent[last]]
    return content


def json_text(content: Any, random: Random) -> bytes:
    """JSON as strangers write it: at times with bytes that are no UTF-8, comments, or nothing at the end."""
    data = json.dumps(content).encode()
    if random.random() < 0.15:
        data = damaged(data, random)
    return data


# ---- tars


def tar_of(members: Members) -> bytes:
    """A tar as the package writes them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def torn_tar(members: Members, random: Random, secret: str = "/etc/passwd") -> tuple[bytes, set[str]]:
    """A tar in which one member is not what it should be; and the keys of the records that this may spoil.

    The rest of the tar is as it was, so that what is read of the other records must be right.
    """
    place = random.randrange(len(members))
    name, data = members[place]
    kind = random.randrange(12)
    out = io.BytesIO()
    spoilt = {name.partition(".")[0]}
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for i, (own, content) in enumerate(members):
            info = tarfile.TarInfo(own)
            if i == place and kind == 0:
                continue
            if i == place and kind == 1:
                info.name = random.choice(
                    [f"/{own}", f"../{own}", f"a/../../{own}", secret, "..", f"./{own}", "\\" + own]
                )
            if i == place and kind == 2:
                info.type, info.linkname = random.choice([tarfile.SYMTYPE, tarfile.LNKTYPE]), secret
                tar.addfile(info)
                continue
            if i == place and kind == 3:
                info.type = random.choice([tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE])
                tar.addfile(info)
                continue
            if i == place and kind == 4:
                info.name = random.choice(
                    ["x" * 300, "é" * 60, "no_dot", ".hidden", "a b.jpg", own.upper(), "\x1b[31m.jpg"]
                )
            if i == place and kind == 5:
                info.pax_headers = {
                    "path": random.choice(["/abs", "../up", own]),
                    "size": str(random.choice([0, 9**15])),
                }
            if i == place and kind == 6:
                content = damaged(content, random)
            if i == place and kind == 7:
                content = b""
            if i == place and kind == 8:
                info.pax_headers = {
                    "GNU.sparse.major": "1",
                    "GNU.sparse.minor": "0",
                    "GNU.sparse.name": own,
                    "GNU.sparse.realsize": str(random.choice([10**6, 4 * 10**9, 10**15])),
                }
                content = b"1\n0\n1\n".ljust(512, b"\0") + content
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
            if i == place and kind == 9:
                tar.addfile(info, io.BytesIO(content))
            if i == place and kind == 10:
                extra = tarfile.TarInfo(f"{own.partition('.')[0]}.{random.choice(['f9.jpg', 'run.sh', 'meta.json'])}")
                tar.addfile(extra)
    data = out.getvalue()
    if kind == 11:
        data = damaged(data, random)
        spoilt = {own.partition(".")[0] for own, _ in members}
    return data, spoilt


# ---- headers of pictures that promise more than they hold


def png_of(width: int, height: int, rows: bytes = b"") -> bytes:
    """A PNG's header and whatever stands for its pixels."""
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(rows or bytes(64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def one_of(choices: Sequence[bytes], random: Random) -> bytes:
    return choices[random.randrange(len(choices))]
