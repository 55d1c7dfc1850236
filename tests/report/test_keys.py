from __future__ import annotations

import pytest

from avloc.report.keys import KeysError, aliases, near, read_keys


def test_names_come_from_a_list_a_line_or_a_file(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text("# figure 4\na\n\n b, with a comma \na\n", encoding="utf-8")
    assert read_keys(["a", "b", "a"]) == ["a", "b"]
    assert read_keys("a, b,") == ["a", "b"]
    assert read_keys(path) == read_keys(str(path)) == ["a", "b, with a comma"]
    assert read_keys(None) == read_keys([]) == []


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"\xff\xfe\x00"])
def test_a_file_that_names_nothing_is_an_error(tmp_path, content):
    path = tmp_path / "keys.txt"
    path.write_bytes(content)
    with pytest.raises(KeysError, match=r"keys\.txt"):
        read_keys(path)


def test_only_commas_name_nothing():
    with pytest.raises(KeysError, match="names no sample"):
        read_keys(" , ")


@pytest.mark.parametrize(
    ("key", "picture", "names"),
    [
        ("a", "", ["a"]),
        ("a.f3@noise", "", ["a.f3@noise", "a.f3", "a"]),
        ("a_0", "scene1", ["a_0", "scene1"]),
        ("a@silence", "a", ["a@silence", "a"]),
    ],
)
def test_names_of_a_sample(key, picture, names):
    assert aliases(key, picture) == names


def test_similar_names_are_told():
    assert near("vggss__dog", ["vggss__dog1", "other"]) == "vggss__dog (did you mean vggss__dog1?)"
    assert near("x", ["vggss__dog1"]) == "x"
