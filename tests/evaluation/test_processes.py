"""Every protocol on real processes: three and four of them over uneven shares, one of them empty."""

from __future__ import annotations

import json
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch

from avloc.evaluation.evaluator import hashes
from avloc.evaluation.measures import IDENTITIES, Scored, identities
from avloc.evaluation.protocols import PROTOCOLS, protocol
from avloc.metrics.per_sample import PerSample
from avloc.types import Localization
from tests.evaluation.test_protocols import columns, scenes
from tests.processes import together

N = 11


def share(rank: int, world: int) -> list[int]:
    """The last process meets nothing, the first one most."""
    return [i for i in range(N) if min(i // 5, world - 2) == rank] if world > 1 else list(range(N))


def score_everything(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous{world}"
    torch.distributed.init_process_group(
        "gloo", init_method=rendezvous, rank=rank, world_size=world, timeout=timedelta(seconds=120)
    )
    found = {}
    for name in PROTOCOLS:
        given, batch = scenes(name, N)
        rows = share(rank, world)
        measures = protocol(name).measures
        metric = PerSample(N, {f"{m.name}:{c}": k for m in measures for c, k in m.columns.items()} | dict(IDENTITIES))
        if rows:
            part = batch.take(rows)
            assert given.label is not None
            said = Localization(given.heatmap[rows], given.confidence[rows], given.label[rows])
            values = identities(part, partial(hashes, device=part.device))
            for m in measures:
                values |= {f"{m.name}:{c}": v for c, v in m.function(Scored(said, part)).items()}
            metric.update(part.index, **values)
        found[name] = repr(protocol(name).summary(metric.table()))
    Path(folder, f"{world}.{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("world", [3, 4])
def test_processes_agree_with_one(world: int, tmp_path: Path) -> None:
    together(score_everything, (world, str(tmp_path)), world)
    for rank in range(world):
        found = json.loads((tmp_path / f"{world}.{rank}.json").read_text())
        for name in PROTOCOLS:
            whole = protocol(name).summary(columns([name], *scenes(name, N)))
            assert found[name] == repr(whole), name
