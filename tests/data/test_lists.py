from __future__ import annotations

from pathlib import Path

import pytest

from avloc.data.lists import read_lines, text_lines, unmatched
from avloc.methods.acl.inversion import read_phrases
from avloc.methods.classes import listed
from avloc.report.keys import read_keys
from data_prep.extended import read_negatives
from data_prep.flickr import read_list
from data_prep.tables import read_ids, read_table, read_tags

CLIPS = b"\xef\xbb\xbfabcdefghij1_30.mp4\r\n\r\n  \r\n-bcdefghij2_7000_17000\r\n_bcdefghij3_000007.MP4\r\n"
IDS = ["abcdefghij1_000030", "-bcdefghij2_000007", "_bcdefghij3_000007"]


def test_a_list_reads_alike_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(CLIPS)
    assert read_ids(path) == read_tags([f"heard={path}"])["heard"] == set(IDS)
    assert [r["id"] for r in read_table(path, ["id"], clips=["id"])] == IDS
    assert list(read_list(path)) == [line for _, line in text_lines(path)], "Flickr's ids are no clips"
    row = b"abcdefghij1_30.mp4,-bcdefghij2_7000_17000,non-sounding\r\n"
    path.write_bytes(b"\xef\xbb\xbfvideo,audio,label\r\n\r\n" + row)
    assert [r.id for r in read_negatives(path)] == [f"{IDS[0]}+{IDS[1]}"]


def test_phrases_names_and_keys_have_no_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "phrases.txt"
    path.write_bytes("\ufeffa dog, barking\r\n\r\n  der Bär  \r\n".encode())
    wanted = ["a dog, barking", "der Bär"]
    assert read_phrases(path) == listed(str(path)) == read_keys(path) == wanted
    assert [line for _, line in text_lines(path)] == wanted
    assert [n for n, _ in text_lines(path)] == [1, 3]


def test_what_would_hide_lines_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text('a,"b\nc,d\n')
    with pytest.raises(ValueError, match=r"list\.csv cannot be read as a table"):
        read_lines(path)
    path.write_bytes("a,b\n".encode("utf-16"))
    for reader in (read_lines, text_lines):
        with pytest.raises(ValueError, match=r"Save it as UTF-8"):
            reader(path)


def test_ids_that_match_nothing_are_counted_and_named() -> None:
    assert unmatched(["a", "b"], ["b", "c", "a"], "x") == []
    (note,) = unmatched(map(str, range(7)), "0", "list.csv")
    assert note == "6 ids of list.csv match nothing (1, 2, 3, 4, 5, ...). Is it the list of this set?"
