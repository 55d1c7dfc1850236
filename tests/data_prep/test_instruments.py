from __future__ import annotations

import csv
import os
import pickle
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from avloc.data.index import read_index, read_shard
from avloc.data.labels import LABEL_SPACES
from avloc.data.media import MediaError
from avloc.data.schema import Record
from data_prep import vgg_instruments, vgg_instruments_mixed
from data_prep.array_pickle import read_array
from data_prep.vgg_instruments import read_mask, read_rows
from tests.data.clips import write_clip
from tests.data_prep.loose import official, read, rectangle, skipped, write_picture, write_sound

SINGLE = "vggsound_instruments/vgginstruments_test.csv"
MIXED = "vggsound_instruments/vgginstruments_multi_test.csv"


def test_the_official_lists() -> None:
    single, mixed = read_rows(official(SINGLE)), read_rows(official(MIXED))
    assert len(single) == len(mixed) == 446
    classes = {r.labels[0] for r in single}
    assert len(classes) == 36
    assert set(LABEL_SPACES["instruments37"]) - classes == {"erhu"}
    numbers = {int(r.ids[0].removeprefix("sample")) for r in single}
    assert (min(numbers), max(numbers)) == (0, 499)
    assert len(set(range(500)) - numbers) == 54
    own = {r.ids[0]: r.labels[0] for r in single}
    assert all(own[i] == label for r in mixed for i, label in zip(r.ids, r.labels, strict=True))
    assert all(a != b for a, b in (r.labels for r in mixed))
    assert len({r.ids[1] for r in mixed}) == 255
    pairs = {r.ids for r in mixed}
    assert not any((b, a) in pairs for a, b in pairs)


def mask_of(n: int) -> np.ndarray:
    """Top rows of a 224 grid, as many as the sample's place tells."""
    return rectangle(0, 0, 224, 10 * n + 10)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """The first three real samples and the partners of the first two, in the layout of AVGN."""
    rows = list(csv.reader(official(MIXED).open()))[:2]
    single = {r[0]: r[1] for r in csv.reader(official(SINGLE).open())}
    ids = [*list(single)[:3], *(r[2] for r in rows)]
    return lay_out(tmp_path, {i: single[i] for i in ids}, rows)


def lay_out(folder: Path, single: dict[str, str], mixed: list[list[str]]) -> Path:
    """AVGN's layout of these samples, whose masks are `mask_of` their places, and of pairs of them."""
    media = folder / "media"
    (media / "anno").mkdir(parents=True)
    (folder / "single.csv").write_text("".join(f"{i},{label}\n" for i, label in single.items()))
    (folder / "mixed.csv").write_text("\n".join(",".join(r) for r in mixed))
    for n, i in enumerate(single):
        write_picture(media / "frames" / f"{i}.jpg", 40 * n)
        write_sound(media / "audio" / f"{i}.wav", (n + 1) / 10)
        (media / "anno" / f"{i}.pkl").write_bytes(pickle.dumps(mask_of(n) > 0, protocol=n))
    write_picture(media / "frames" / "sample9999.jpg", 0)
    return folder


def options(folder: Path, table: str) -> list[str]:
    folders = ["--media", str(folder / "media"), "--annotations", str(folder / table), "--out", str(folder)]
    return [*folders, "--jobs", "1"]


def test_training_clips_are_those_of_vggsound(tmp_path: Path) -> None:
    rows = [("--G-wKyj6JQ_000030", "harpsichord"), ("--gJvz9RrfA_000013", "bass_guitar")]
    rows.append(("--nzKFQ7Myg_000109", "bongo"))
    (tmp_path / "train.txt").write_text("".join(f"{key},{label}\n" for key, label in rows))
    for key, _ in rows[:2]:
        write_clip(tmp_path / "videos" / f"{key}.mp4", fps=5)
    where = ["--annotations", str(tmp_path / "train.txt"), "--out", str(tmp_path), "--jobs", "1"]
    assert vgg_instruments.main([*where, "--videos", str(tmp_path / "videos")]) == 0
    index = read_index(tmp_path / "vgg_instruments" / "vgg_instruments-train.json")
    assert index.count == 2
    assert skipped(tmp_path, "vgg_instruments", "train") == {rows[2][0]: "video missing"}
    names = LABEL_SPACES["instruments37"]
    tars = [members for i in range(len(index.shards)) for members in read_shard(index.locate(i))]
    found = {record.id: record for record in (Record.from_json(members["meta.json"]) for members in tars)}
    for key, label in rows[:2]:
        (target,) = found[key].targets
        assert (target.class_name, target.class_id, target.label_space) == (label, names.index(label), "instruments37")
        assert (found[key].split, found[key].map_rule, found[key].audios[0].src_id) == ("train", "none", key)


def test_single(release: Path) -> None:
    (release / "media" / "anno" / "sample0002.pkl").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    assert vgg_instruments.main(options(release, "single.csv")) == 0
    data = read(release, "vgg_instruments")
    ids = [line.split(",")[0] for line in (release / "single.csv").read_text().splitlines()]
    labels = dict(line.split(",") for line in (release / "single.csv").read_text().splitlines())
    assert {r.id for r in data.records} == {*ids} - {"sample0002"}
    for i, record in enumerate(data.records):
        item, n = data[i], ids.index(record.id)
        np.testing.assert_array_equal(item.truth, [mask_of(n)])
        assert record.label == labels[record.id]
        assert abs(item.image.mean() - 40 * n) < 2
        np.testing.assert_allclose(item.audio, (n + 1) / 10, atol=1e-4)
    assert skipped(release, "vgg_instruments")["sample9999"] == "no annotation row for this picture"
    assert "sample0002" in skipped(release, "vgg_instruments")
    assert not (release / "hacked").exists()
    assert not Path("hacked").exists()


def test_mixed(release: Path) -> None:
    assert vgg_instruments_mixed.main(options(release, "mixed.csv")) == 0
    rows = {r[0]: r for r in csv.reader((release / "mixed.csv").open())}
    ids = [line.split(",")[0] for line in (release / "single.csv").read_text().splitlines()]
    data = read(release, "vgg_instruments_mixed")
    assert len(data) == 2
    for i, record in enumerate(data.records):
        own, _, partner, _ = rows[record.id]
        item = data[i]
        a, b = ids.index(own), ids.index(partner)
        zero = np.zeros((224, 224))
        expected = [np.hstack([mask_of(a), zero]), np.hstack([zero, mask_of(b)])]
        np.testing.assert_array_equal(item.truth, expected)
        np.testing.assert_allclose(item.audio, (a + 1) / 10 + (b + 1) / 10, atol=1e-4)
        assert item.label == [rows[record.id][1], rows[record.id][3]]
        assert [t.audio for t in record.targets] == [0, 1]
        assert "duet" in record.tags


def test_a_sample_can_be_made_twice(release: Path) -> None:
    args = Namespace(
        media=release / "media", annotations=release / "mixed.csv", name="", as_published=False, rate=16000
    )
    (plan,) = vgg_instruments.plans("vgg_instruments_mixed", args)
    first, second = plan.jobs[0].make(), plan.jobs[0].make()
    assert first
    assert len(first.record.frames) == 2
    assert first == second


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["bool", "uint8", "<i8", ">i4", "float32", ">f8"])
def test_pickles_of_every_protocol(protocol: int, dtype: str, tmp_path: Path) -> None:
    values = (np.arange(12).reshape(3, 4) % 3).astype(dtype)
    path = tmp_path / "a.pkl"
    for array in (values, np.asfortranarray(values), values[:, ::2]):
        path.write_bytes(pickle.dumps(array, protocol=protocol))
        found = read_array(path)
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype


def test_pickles_of_older_numpy_have_other_module_names(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(np.eye(3), protocol=2).replace(b"numpy._core.", b"numpy.core."))
    assert b"numpy.core.multiarray" in path.read_bytes()
    np.testing.assert_array_equal(read_array(path), np.eye(3))


def test_pickles_of_python_two(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\nI2\ntcnumpy\ndtype\n"
        b"(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x00\\xff\\x01\\x00'\ntb."
    )
    np.testing.assert_array_equal(read_array(path), [[0, 255], [1, 0]])


class Evil:
    def __init__(self, call: object, *args: object) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call, self.args


def test_nothing_of_a_pickle_is_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "a.pkl", tmp_path / "trace"
    attacks = {
        "asks for posix.system": pickle.dumps(Evil(os.system, f"touch {trace}")),
        "asks for builtins.eval": pickle.dumps(Evil(eval, f"open({str(trace)!r}, 'w')")),
        "asks for subprocess.call": pickle.dumps(Evil(subprocess.call, ["touch", str(trace)])),
        "asks for numpy.load": pickle.dumps(Evil(np.load, "x")),
        "asks for builtins.getattr": pickle.dumps([np.eye(2), Evil(getattr, "x", "upper")]),
        "not of numbers": pickle.dumps(np.array([Evil, None], object)[1:]),
        "holds list": pickle.dumps([[1, 2], [3, 4]]),
        "bytes for the shape": pickle.dumps(np.zeros((3, 4), np.uint8)).replace(b"K\x03K\x04", b"K\x7fK\x7f"),
        "codec": b"c_codecs\nencode\n(Vx\nVrot13\ntR.",
        "holds NoneType": b"\x80\x04Nr\xff\xff\xff\x7f.",  # the unpickler in C would take 32 GB for this memo
        "cannot be decoded": pickle.dumps(np.zeros((3, 4)))[:-20],
    }
    for says, data in attacks.items():
        path.write_bytes(data)
        with pytest.raises(MediaError, match=says):
            read_array(path)
    assert not trace.exists()
    with pytest.raises(MediaError, match="mask missing"):
        read_array(tmp_path / "none.pkl")


def test_masks_must_be_flat_and_finite(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(np.array([[0, 0.25], [-1, 3]])))
    np.testing.assert_array_equal(read_mask(path), [[False, True], [True, True]])
    for bad in (np.zeros((2, 2, 1)), np.array([[np.nan, 0.0]]), np.zeros((0, 4))):
        path.write_bytes(pickle.dumps(bad))
        with pytest.raises(MediaError, match="cannot be decoded as a mask"):
            read_mask(path)


def test_wrong_lists_are_named(release: Path, capsys: pytest.CaptureFixture) -> None:
    (release / "twins.csv").write_text("sample0000,banjo\nsample0000,banjo\n")
    (release / "class.csv").write_text("sample0000,theremin\n")
    (release / "both.csv").write_text("sample0000,banjo\nsample0001,banjo,sample0000,cello\n")
    for main, table, says in (
        (vgg_instruments.main, "twins.csv", "more than once (sample0000)"),
        (vgg_instruments.main, "class.csv", "row 1: 'theremin' is none of the 37"),
        (vgg_instruments.main, "both.csv", "with and without a partner"),
        (vgg_instruments.main, "mixed.csv", "is not vgginstruments_test.csv: it has partners"),
        (vgg_instruments_mixed.main, "single.csv", "is not vgginstruments_multi_test.csv: it has no partners"),
    ):
        with pytest.raises(SystemExit):
            main(options(release, table))
        assert says in capsys.readouterr().err


def test_modules_run_as_programs(release: Path) -> None:
    command = [sys.executable, "-m", "data_prep.vgg_instruments_mixed", *options(release, "mixed.csv"), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "vgg_instruments_mixed-test: 2 records to write, 2 left out" in done.stderr
    assert not list(release.glob("vgg_*"))
