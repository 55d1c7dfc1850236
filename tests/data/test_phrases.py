"""Object phrases on their way into training batches: from a table, or from the records."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from avloc.data.index import read_index
from avloc.data.mixing import mix_batch
from avloc.data.module import AVDataModule
from avloc.data.phrases import PhraseError, phrases_path, read_phrases
from avloc.data.schema import Sample
from avloc.data.shards import write_shards
from avloc.types import AVBatch
from avloc.world import write_world
from avloc.world.dataset import samples
from tests.data.make import SPEC, number, sample, toy_set


def told(i: int, **text: str) -> Sample:
    x = sample(i)
    x.record.text |= text
    return x


def table(path: Path, phrases: dict[str, str | None]) -> Path:
    pq.write_table(pa.table({"key": list(phrases), "phrase": pa.array(phrases.values(), pa.string())}), path)
    return path


def batches(root: Path, phrases: str | None) -> list[AVBatch]:
    data = AVDataModule(
        train="toy", root=str(root), batch_size=4, num_workers=0, input_spec=SPEC, shuffle_buffer=4, phrases=phrases
    )
    data.setup("fit")
    return list(data.train_dataloader())


def seen(root: Path, phrases: str | None) -> dict[int, str]:
    return {number(k): p for b in batches(root, phrases) for k, p in zip(b.key, b.phrase, strict=True)}


def test_records_bring_their_own_phrases(tmp_path: Path) -> None:
    made = [told(i, llm=f"thing {i}", llm_audio=f"noise {i}") if i % 3 else told(i) for i in range(20)]
    toy_set(tmp_path, 20, samples=made)
    assert seen(tmp_path, "both") == {i: f"thing {i}" if i % 3 else "" for i in range(20)}
    assert seen(tmp_path, "audio") == {i: f"noise {i}" if i % 3 else "" for i in range(20)}
    assert all(b.phrase == [] for b in batches(tmp_path, None))  # nobody asked
    with pytest.raises(PhraseError, match=r"toy-train.*none of 20 records.*'llm_image'.*object_phrases --set"):
        seen(tmp_path, "image")


def test_a_table_beside_the_index_comes_first(tmp_path: Path) -> None:
    index = toy_set(tmp_path, 20, samples=[told(i, llm="own") for i in range(20)])
    assert phrases_path(str(index), "both") == tmp_path / "toy" / "toy-train.phrases-both.parquet"
    table(
        phrases_path(str(index), "both"), {f"toy__s{i:04d}": f"table {i}" for i in range(5, 20)} | {"toy__s0005": None}
    )
    expected = {i: f"table {i}" if i > 5 else "" for i in range(20)}
    assert seen(tmp_path, "both") == expected
    elsewhere = table(tmp_path / "mine.parquet", {"toy__s0007": "seven"})
    assert seen(tmp_path, str(elsewhere)) == {i: "seven" if i == 7 else "" for i in range(20)}


def test_phrases_do_not_change_what_is_seen_and_heard(tmp_path: Path) -> None:
    toy_set(tmp_path, 20, samples=[told(i, llm="x") for i in range(20)])
    for a, b in zip(batches(tmp_path, None), batches(tmp_path, "both"), strict=True):
        assert a.key == b.key
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.audio, b.audio)
        assert b.phrase == ["x"] * 4


def test_unusable_tables_are_named(tmp_path: Path) -> None:
    index = read_index(toy_set(tmp_path, 20))
    other = table(tmp_path / "other.parquet", {"vggsound__a": "dog"})
    with pytest.raises(PhraseError, match=r"none of 20 records.*other\.parquet.*'vggsound__a'.*another set"):
        seen(tmp_path, str(other))
    with pytest.raises(PhraseError, match=r"'bth' is neither both, audio, image nor a table"):
        read_phrases("bth", index)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(PhraseError, match=r"broken\.parquet cannot be read"):
        read_phrases(str(tmp_path / "broken.parquet"), index)
    pq.write_table(pa.table({"key": ["a"], "text": ["b"]}), tmp_path / "columns.parquet")
    with pytest.raises(PhraseError, match=r"columns\.parquet cannot be read.*key and phrase"):
        read_phrases(str(tmp_path / "columns.parquet"), index)


def test_the_share_is_told(tmp_path: Path) -> None:
    index = read_index(toy_set(tmp_path, 20, per_shard=20, samples=[told(i, llm="x" * (i < 5)) for i in range(20)]))
    sentence = read_phrases("both", index).check(index)
    assert sentence == "toy-train: 25.0% of the records of shard 0 have an object phrase (text['llm'] of the records)"


def test_a_world_written_before_phrases_is_refused(tmp_path: Path) -> None:
    old = list(samples("train", scenes=4))
    for s in old:
        s.record.text = {k: v for k, v in s.record.text.items() if not k.startswith("llm")}
    write_shards(tmp_path / "world", "world", "train", old)
    data = AVDataModule(train="world:train", root=str(tmp_path), batch_size=2, num_workers=0, phrases="both")
    data.input_spec = SPEC
    with pytest.raises(PhraseError, match=rf"world-train in {tmp_path}/world.*Delete that folder.*data\.phrases"):
        data.setup("fit")
    write_world(tmp_path / "new" / "world", "train", scenes=4)
    AVDataModule(
        train="world:train", root=str(tmp_path / "new"), batch_size=2, num_workers=0, phrases="both", input_spec=SPEC
    ).setup("fit")


def test_phrases_follow_their_samples_through_take_and_mixtures() -> None:
    batch = AVBatch(
        ["a", "b", "c"],
        torch.zeros(3, 3, 2, 2, dtype=torch.uint8),
        torch.zeros(3, 4),
        torch.full((3,), -1),
        phrase=["dog", "", "bell"],
    )
    assert batch.take([2, 0]).phrase == ["bell", "dog"]
    assert batch.to("cpu").phrase == batch.phrase
    assert mix_batch(batch, torch.tensor([[0, 2], [1, 2]])).phrase == ["dog and bell", "bell"]
