from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from avloc.data.schema import Record, Target
from avloc.evaluation.evaluator import Evaluator
from avloc.evaluation.measures import EXTENTS
from avloc.evaluation.protocols import ProtocolError
from avloc.evaluation.results import RescoreError, rescore
from avloc.methods.base import Localizer
from avloc.methods.baselines.controls import FullFrame, MeanMap, RandomMap
from avloc.metrics.per_sample import CountError
from avloc.types import AVBatch, InputSpec, Localization
from tests.processes import together


@dataclass
class ToySet:
    """Sample i has a box over the first i + 1 of 8 rows."""

    name: str
    size: int
    row: str = "model"
    allow_missing: int = 0
    unread: tuple[int, ...] = ()
    calibration: bool = False
    notes: tuple[str, ...] = ()
    semantic_offset: int = 1

    def mean_truth(self, rank: int, world: int) -> tuple[torch.Tensor, int]:
        batch = self.collate(list(range(rank, self.size, world)))
        assert batch.truth is not None
        return batch.truth.sum((0, 1)), len(batch)

    def class_counts(self) -> dict[int, int]:
        return {}

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> int:
        return i

    def collate(self, rows: list[int]) -> AVBatch:
        truth = torch.zeros(len(rows), 1, 8, 8)
        for row, i in zip(truth, rows, strict=True):
            row[:, : i + 1] = 1
        return AVBatch(
            key=[f"k{i}" for i in rows],
            image=torch.zeros(len(rows), 3, 16, 16, dtype=torch.uint8),
            audio=torch.zeros(len(rows), 8),
            index=torch.tensor([-1 if i in self.unread else i for i in rows]),
            truth=truth,
        )


class ToyData(LightningDataModule):
    def __init__(self, *sets: ToySet) -> None:
        super().__init__()
        self.test_sets = self.val_sets = list(sets)

    def test_dataloader(self) -> list[DataLoader]:
        rank, world = self.trainer.global_rank, self.trainer.world_size  # type: ignore[union-attr]
        return [
            DataLoader(s, batch_size=3, collate_fn=s.collate, sampler=range(rank, len(s), world))  # type: ignore[arg-type]
            for s in self.test_sets
        ]

    val_dataloader = test_dataloader

    def train_dataloader(self) -> DataLoader:
        return self.test_dataloader()[0]


def trainer(folder: Path, evaluator: Evaluator, **kwargs: object) -> Trainer:
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, **kwargs}
    return Trainer(accelerator="cpu", default_root_dir=folder, callbacks=[evaluator], **options)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
def test_results_equal_hand_arithmetic(tmp_path: Path) -> None:
    evaluator = Evaluator()
    data = ToyData(ToySet("toy", 8), ToySet("toy", 8, row="shuffled sound"), ToySet("world:negative", 4))
    run = trainer(tmp_path, evaluator)
    run.test(FullFrame(), data, verbose=False)
    results = json.loads((tmp_path / "results.json").read_text())["sets"]
    toy = results["toy"]
    assert list(toy["rows"]) == ["model", "full frame", "centre box", "random map", "mean map", "shuffled sound"]
    assert set(toy["counted"].values()) == {8}
    # the full frame scores 1/8 .. 8/8: five of eight reach 0.5
    for row in ("model", "full frame", "shuffled sound"):
        assert toy["rows"][row]["vggss/acl"]["ciou"] == 5 / 8
        assert toy["rows"][row]["vggss/acl"]["mean_ciou"] == pytest.approx(36 / 64)
        assert toy["rows"][row]["vggss/adaptive"]["ciou"] == 0
    # the centre box: rows and columns 2..5; truths of 8 n pixels, hits 4 (n - 2) clipped to 0..16
    hits = [min(max(4 * (n - 2), 0), 16) for n in range(1, 9)]
    ious = [h / (8 * n + 16 - h) for n, h in zip(range(1, 9), hits, strict=True)]
    assert toy["rows"]["centre box"]["vggss/acl"]["mean_ciou"] == pytest.approx(sum(ious) / 8)
    # the mean map falls from row to row: a threshold takes the same number of rows in every sample
    levels = 0.05 * np.arange(21)
    ious = np.array([[min(n, rows) / max(n, rows) for n in range(1, 9)] for rows in range(1, 9)])
    areas = [np.trapezoid((i[:, None] >= levels).mean(0), levels) for i in ious]
    assert toy["rows"]["mean map"]["vggss/acl"]["auc"] == pytest.approx(max(areas))
    assert toy["rows"]["mean map"]["vggss/acl"]["ciou"] == (ious[int(np.argmax(areas))] >= 0.5).mean()
    assert results["world:negative"]["rows"]["centre box"]["negative/pia"]["pia"] == 0.25
    logged = {k: v.item() for k, v in run.callback_metrics.items()}
    assert logged["test/toy/ciou"] == logged["test/toy/shuffled_sound/ciou"] == 5 / 8
    assert logged["test/toy/vggss/adaptive/ciou"] == 0
    assert logged["test/world:negative/pia"] == 1
    table = pd.read_parquet(tmp_path / "per_sample.parquet")
    model = table[(table.set == "toy") & (table.row == "model")]
    assert model.key.tolist() == [f"k{i}" for i in range(8)]
    assert [values[9] for values in model["sweep:ciou"]] == [n / 8 for n in range(1, 9)]
    assert model.truth_area.tolist() == [n / 8 for n in range(1, 9)]
    box = table[(table.set == "toy") & (table.row == "centre box")]
    for rows, share in ((model, 1), (box, 0.25)):
        assert set(rows.predicted_share) == {share}
        assert set(rows.sources) == set(rows.answered) == set(rows.regions) == {1}


@pytest.mark.filterwarnings("ignore")
def test_unreadable_samples_are_reported(tmp_path: Path) -> None:
    evaluator = Evaluator(controls=False)
    broken = ToySet("toy", 8, allow_missing=1, unread=(0,))
    trainer(tmp_path, evaluator).test(FullFrame(), ToyData(broken), verbose=False)
    toy = json.loads((tmp_path / "results.json").read_text())["sets"]["toy"]
    assert toy["missing"]["model"] == ["k0"]
    assert toy["counted"]["model"] == 7
    assert toy["rows"]["model"]["vggss/acl"]["mean_ciou"] == pytest.approx(35 / 56)
    broken.allow_missing = 0
    with pytest.raises(CountError, match=r"8 samples of toy \(model\), 1 are unreadable and 0 may be"):
        trainer(tmp_path, evaluator).test(FullFrame(), ToyData(broken), verbose=False)


class Classes(ToySet):
    """The first five boxes are of class 2, the other three of class 7."""

    def class_counts(self) -> dict[int, int]:
        return {2: 5, 7: 3}

    def collate(self, rows: list[int]) -> AVBatch:
        batch = super().collate(rows)
        assert batch.truth is not None
        number = torch.tensor([3 if i < 5 else 8 for i in rows])
        batch.semantic = (batch.truth[:, 0] * number[:, None, None]).long()
        return batch


@pytest.mark.filterwarnings("ignore")
def test_controls_name_the_most_frequent_class(tmp_path: Path) -> None:
    """The full frame is of class 2 everywhere: 8 (1 + ... + 5) of 8 x 64 pixels are right, of three classes seen."""
    evaluator = Evaluator(protocols={"toy": ["avss17/seen"]})
    trainer(tmp_path, evaluator).test(FullFrame(), ToyData(Classes("toy", 8)), verbose=False)
    toy = json.loads((tmp_path / "results.json").read_text())["sets"]["toy"]
    assert toy["rows"]["full frame"]["avss17/seen"]["miou"] == pytest.approx(120 / 512 / 3)
    assert "rows without classes are given the most frequent one, 2" in toy["notes"]


class Padded(ToySet):
    """Like Lightning's own sampler on several processes: the first sample comes again at the end."""

    def collate(self, rows: list[int]) -> AVBatch:
        return super().collate([i % 8 if i < 8 else 0 for i in rows])


@pytest.mark.filterwarnings("ignore")
def test_a_sample_counted_twice_is_an_error(tmp_path: Path) -> None:
    data = ToyData(Padded("toy", 9))
    with pytest.raises(CountError, match=r"1 were counted more than once \(index 0\); 1 are missing \(index 8\)"):
        trainer(tmp_path, Evaluator()).test(FullFrame(), data, verbose=False)


@pytest.mark.filterwarnings("ignore")
def test_part_of_a_set_says_so(tmp_path: Path) -> None:
    run = trainer(tmp_path, Evaluator(), limit_test_batches=1)
    run.test(FullFrame(), ToyData(ToySet("toy", 8)), verbose=False)
    toy = json.loads((tmp_path / "results.json").read_text())["sets"]["toy"]
    assert not toy["whole"]
    assert toy["counted"]["model"] == 3


def score_two_sets(rank: int, folder: Path, port: int, name: str = "two") -> None:
    options: dict[str, object] = {"devices": 1}
    if name == "two":  # of two processes that somebody else has started, as a cluster does
        os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        options = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
    run = trainer(folder, Evaluator(out=str(folder / name)), **options)
    run.test(RandomMap(), ToyData(ToySet("toy", 7), ToySet("world:negative", 2)), verbose=False)


def test_two_processes_give_the_same_files(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    score_two_sets(0, tmp_path, port, "one")
    together(score_two_sets, (tmp_path, port))
    for file in ("results.json", "per_sample.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


class Learner(Localizer):
    input_spec = InputSpec()

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(value))

    def training_losses(self, batch: AVBatch) -> dict[str, torch.Tensor]:
        return {"loss": self.value**2}

    def localize(self, batch: AVBatch) -> Localization:
        heatmap = self.value.expand(len(batch), 1, 4, 4)
        return Localization(heatmap, heatmap[:, :, 0, 0])


@pytest.mark.filterwarnings("ignore")
def test_validation_within_fit(tmp_path: Path) -> None:
    run = trainer(tmp_path, Evaluator(), max_epochs=2, enable_checkpointing=False)
    run.fit(Learner(), ToyData(ToySet("toy", 8)))
    assert run.callback_metrics["val/toy/ciou"].item() == 5 / 8
    rows = json.loads((tmp_path / "val_results.json").read_text())["sets"]["toy"]["rows"]
    assert list(rows) == ["model"]


@pytest.mark.filterwarnings("ignore")
def test_maps_that_cannot_be_scored_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"toy: the heat maps or confidences of 3 samples \(k0, k1, k2\) hold NaN"):
        trainer(tmp_path, Evaluator()).test(Learner(float("nan")), ToyData(ToySet("toy", 8)), verbose=False)


@pytest.mark.filterwarnings("ignore")
def test_two_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    data = ToyData(ToySet("toy", 8), ToySet("toy", 4))
    with pytest.raises(RuntimeError, match="a name and row of its own"):
        trainer(tmp_path, Evaluator()).test(FullFrame(), data, verbose=False)


@pytest.mark.filterwarnings("ignore")
def test_every_number_follows_from_the_per_sample_file(tmp_path: Path) -> None:
    sets = ToySet("toy", 8), ToySet("world:negative", 4), ToySet("world:pairs", 5)
    trainer(tmp_path, Evaluator()).test(RandomMap(), ToyData(*sets), verbose=False)
    path = tmp_path / "results.json"
    before = path.read_bytes()
    content = json.loads(before)
    for entry in content["sets"].values():
        for row in entry["rows"]:
            entry["rows"][row] = {}
    path.write_text(json.dumps(content))
    rescore(tmp_path)
    assert path.read_bytes() == before
    file = tmp_path / "per_sample.parquet"
    older = pd.read_parquet(file).drop(columns=list(EXTENTS))
    groups = pa.Table.from_pandas(older, preserve_index=False)
    with pq.ParquetWriter(file, groups.schema) as writer:
        for _, part in older.groupby(["set", "row"], sort=False):
            writer.write_table(pa.Table.from_pandas(part, groups.schema, preserve_index=False))
    rescore(tmp_path)
    assert path.read_bytes() == before
    (tmp_path / "per_sample.parquet").unlink()
    with pytest.raises(RescoreError, match=r"per_sample\.parquet does not exist"):
        rescore(tmp_path)


class Quiet(ToySet):
    """Every second sample has nothing to be found."""

    def collate(self, rows: list[int]) -> AVBatch:
        batch = super().collate(rows)
        assert batch.truth is not None
        batch.sounding = torch.tensor([i % 2 == 0 for i in rows])
        batch.truth[~batch.sounding] = 0
        return batch


@pytest.mark.filterwarnings("ignore")
def test_a_threshold_of_the_calibration_set_is_applied_everywhere(tmp_path: Path) -> None:
    data = ToyData(Quiet("cal", 8, calibration=True), ToySet("toy", 8), Quiet("other", 6))
    trainer(tmp_path, Evaluator()).test(Learner(0.6), data, verbose=False)
    results = json.loads((tmp_path / "results.json").read_text())
    # a constant 0.6 fills every picture up to 0.60, where all negatives are wrong; nothing is said above
    assert results["universal"]["chosen_on"] == ["cal"]
    assert results["universal"]["threshold"] == 0.01  # the balance is 0 either way: the lowest
    toy = results["sets"]["toy"]["rows"]["model"]["universal"]
    assert toy["iou"] == pytest.approx(36 / 64)
    assert "fpr" not in toy
    assert results["sets"]["other"]["rows"]["model"]["universal"]["fpr"] == 1
    assert list(results["sets"]["cal"]["rows"]) == ["model"]
    only = ToyData(ToySet("cal", 4, calibration=True))
    with pytest.raises(ValueError, match="hold no negatives"):
        trainer(tmp_path, Evaluator()).test(FullFrame(), only, verbose=False)


@pytest.mark.filterwarnings("ignore")
def test_the_mean_map_is_a_method_too(tmp_path: Path) -> None:
    trainer(tmp_path, Evaluator()).test(MeanMap(), ToyData(ToySet("toy", 8)), verbose=False)
    rows = json.loads((tmp_path / "results.json").read_text())["sets"]["toy"]["rows"]
    assert rows["model"] == rows["mean map"]


@pytest.mark.filterwarnings("ignore")
def test_protocols_can_be_chosen(tmp_path: Path) -> None:
    evaluator = Evaluator(controls=False, protocols={"toy": ["vggss/lvs", "negative/pia"]})
    trainer(tmp_path, evaluator).test(FullFrame(), ToyData(ToySet("toy", 8)), verbose=False)
    toy = json.loads((tmp_path / "results.json").read_text())["sets"]["toy"]
    assert toy["primary"] == {"protocol": "vggss/lvs", "metric": "ciou"}
    assert list(toy["rows"]["model"]) == ["vggss/lvs", "negative/pia"]
    with pytest.raises(ProtocolError, match="Did you mean vggss/lvs"):
        Evaluator(protocols={"toy": ["vggss/lv"]})


@dataclass
class Told(ToySet):
    """Shows its records, as the sets of shards do."""

    records: tuple[Record, ...] = (Record("toy", "a", targets=[Target()]), Record("toy", "b", targets=[Target()]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "lacks"),
    [("interactive/acl", "interactive groups"), ("multi/acl", "several sources"), ("multi/tvsl", "several sources")],
)
def test_a_protocol_is_refused_where_the_set_lacks_what_it_needs(tmp_path: Path, name: str, lacks: str) -> None:
    evaluator = Evaluator(controls=False, protocols={"toy": [name]})
    with pytest.raises(ProtocolError, match=f"toy cannot be scored by {name}, which needs .*{lacks}"):
        trainer(tmp_path, evaluator).test(FullFrame(), ToyData(Told("toy", 8)), verbose=False)


@pytest.mark.filterwarnings("ignore")
def test_groups_in_some_records_are_enough(tmp_path: Path) -> None:
    data = Told("toy", 8, records=(Record("toy", "a"), Record("toy", "b", group="g", group_size=2)))
    evaluator = Evaluator(controls=False, protocols={"toy": ["interactive/acl"]})
    trainer(tmp_path, evaluator).test(FullFrame(), ToyData(data), verbose=False)
    assert evaluator.results["sets"]["toy"]["rows"]["model"]["interactive/acl"]["n_groups"] == 8
