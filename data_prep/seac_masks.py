"""SeAC's stage one: masks of every picture and their CLIP features, computed once and stored beside the shards.

    python -m data_prep.seac_masks -c seac --dry-run
    python -m data_prep.seac_masks -c seac --num-parts 4 --part 0

The experiment says how masks are made (``model.segmentation``: detector or file of boxes, SAM), how they are embedded
(``model.mixture``, ``model.clip``) and of which sets (``data``); any of its settings can be given behind the options,
as for ``avloc fit``: ``--model.segmentation.sam=sam_vit_b``.

Boxes of MAVL are computed with its own code and written by `avloc.backbones.proposals.write_boxes`, as fractions of the
picture, under the names that ``AVBatch.key`` gives to frames.

N parts may run at the same time, one process and GPU each; a part that was stopped goes on where it was. ``avloc
store`` does the same without the estimate.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from avloc.data.index import ShardError
from avloc.data.indexed import EvalSet
from avloc.data.module import AVDataModule
from avloc.data.schema import SampleError
from avloc.data.stored import FeatureStore, StoreError, made_by, store_name, stored_folder
from avloc.errors import UsageError
from avloc.experiment.run import instantiate
from avloc.experiment.store import stored
from avloc.methods.seac import SeAC
from avloc.names import find_config
from avloc.weights import WeightError

__all__ = ["frame_bytes", "main", "wanted_sets"]

MASK_BYTES = 400  # of one deflated mask of 224 x 224, on average; photographs need 200 to 400


def main(argv: Sequence[str] | None = None) -> int:
    """Store masks; bad options and unreadable sets end it with a message.

    Returns:
        0 when every wanted picture of this part is stored (with ``--dry-run``: can be).
    """
    parser = argparse.ArgumentParser(
        "python -m data_prep.seac_masks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", required=True, help="an experiment of SeAC: name or YAML")
    parser.add_argument("--sets", nargs="+", default=None, help="names or index JSONs instead of the experiment's")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures that are read together (default: 16)")
    parser.add_argument("--jobs", type=int, default=2, help="processes that read pictures (default: 2)")
    parser.add_argument("--device", default=None, help="where networks run (default: a GPU if there is one)")
    parser.add_argument("--num-parts", type=int, default=1, help="number of jobs that share the work")
    parser.add_argument("--part", type=int, default=0, help="which of them this is, from 0")
    parser.add_argument("--dry-run", action="store_true", help="count, estimate, and write nothing")
    args, rest = parser.parse_known_args(argv)
    if not 0 <= args.part < args.num_parts:
        parser.error(f"--part {args.part} must lie between 0 and --num-parts {args.num_parts} minus 1")
    try:
        model, data = instantiate(find_config(args.config), rest)
        if not isinstance(model, SeAC):
            parser.error(f"{args.config} builds {type(model).__name__}, not SeAC. Use `avloc store` for other methods.")
        data.prepare_data()
        indexes = wanted_sets(data, args.sets)
        return store(model, indexes, args)
    except (OSError, ValueError, KeyError, UsageError, ShardError, SampleError, StoreError, WeightError) as e:
        parser.error(str(e.args[0]) if isinstance(e, KeyError) else str(e))


def wanted_sets(data: AVDataModule, names: Sequence[str] | None = None) -> list[str]:
    """Index JSONs of the training, validation and test sets of an experiment, each once; or of ``names``."""
    if names is not None:
        return list(dict.fromkeys(data.find(name, "test") for name in names))
    sets = [(data.train, "train")] if data.train else []
    sets += [(name, "test") for name in (*data.val, *data.test)]
    return list(dict.fromkeys(data.find(name, split) for name, split in sets))


def store(model: SeAC, indexes: Sequence[str], args: argparse.Namespace) -> int:
    """Estimate, then store set by set."""
    console, key = Console(stderr=True), model.cache_key()
    todo = {index: remaining(model, index, key, args.num_parts, args.part) for index in indexes}
    per_frame = frame_bytes(model)
    for index, (left, there) in todo.items():
        report = f"{Path(index).stem}: {left} pictures to do, {there} are there, up to {left * per_frame / 1e9:.2f} GB"
        console.print(report, highlight=False, markup=False, soft_wrap=True)
    need = sum(left for left, _ in todo.values()) * per_frame
    free = min((shutil.disk_usage(Path(index).parent).free for index in indexes), default=0)
    about = f"up to {per_frame / 1e3:.0f} KB a picture, {need / 1e9:.2f} GB in all; {free / 1e9:.1f} GB are free"
    console.print(about, highlight=False, markup=False, soft_wrap=True)
    if args.dry_run:
        return 0 if need <= free else 1
    model.to(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    for done in stored(model, indexes, args.batch_size, args.jobs, args.num_parts, args.part):
        report = f"{done.folder}: {done.units} pictures stored, {done.kept} were there, {len(done.skipped)} broken"
        console.print(report, highlight=False, markup=False, soft_wrap=True)
    return 0


def remaining(model: SeAC, index: str, key: str, num_parts: int, part: int) -> tuple[int, int]:
    """Pictures of this part's shards that are still to do, and that are stored."""
    data = EvalSet(index, model.input_spec, truth_size=None, sound="silence", allow_missing=2**62)
    folder = stored_folder(index, store_name(model))
    finished: set[int] = set()
    if (folder.with_name(f"{folder.name}-{key[:16]}") / "store.json").is_file():
        writer = FeatureStore.write(folder, key, made_by(model))
        finished = {n for n, shard in enumerate(data.index.shards) if writer.finished(n, shard.sha256)}
    units = [data.shard[record] for record, _, condition in data.units if not condition]
    mine = [shard for shard in units if shard % num_parts == part]
    return sum(s not in finished for s in mine), sum(s in finished for s in mine)


def frame_bytes(model: SeAC) -> int:
    """Most bytes of a picture: N masks with their features as float16, a box and a score each."""
    halves = 2 * (2 if model.mixture.parts else 1) * model.network.mask_size
    area = (model.heatmap_size / 224) ** 2
    return round(model.segmentation.count * (halves + 16 + 2 + MASK_BYTES * area)) + 2


if __name__ == "__main__":
    raise SystemExit(main())
