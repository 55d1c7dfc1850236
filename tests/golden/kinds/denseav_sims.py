"""DenseAV's inner products, and what its aggregators make of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from avloc.methods.denseav.network import Aggregation, smoothed
from avloc.methods.denseav.pooled import SimPool, cavmae, imagebind, simpool
from avloc.weights import load_into
from tests.golden.case import Case


def aggregation(v: dict[str, Any], chunk: int = 2) -> Aggregation:
    return Aggregation(
        v["sim_agg_type"], v["num_heads"], v["head_agg"], v["use_cls"], v["nonneg_sim"], v["mask_silence"], chunk
    )


@torch.no_grad()
def run(case: Case) -> dict[str, Tensor]:
    if case.name == "baselines" or "simpool_gamma" in case.config:
        return baselines(case)
    if "variant" in case.config:
        return retrieval(case)
    return video(case) if "blur_window" in case.config else variants(case)


def features(x: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return x["image_feats"], x["audio_feats"], x["audio_mask"], x["image_cls"], x["audio_cls"]


def variants(case: Case) -> dict[str, Tensor]:
    image, audio, mask, image_cls, audio_cls = features(case.inputs)
    n = case.config["n_pairs"]
    found: dict[str, Tensor] = {}
    for name, v in case.config["variants"].items():
        agg = aggregation(v)
        S = agg.paired(image[:n], audio[:n], mask[:n], image_cls[:n], audio_cls[:n])
        pairs = (image, audio, mask, image_cls, audio_cls)
        found |= {
            f"{name}.full": agg.all_pairs(*pairs),
            f"{name}.full_by_head": agg.all_pairs(*pairs, heads=False),
            f"{name}.full_raw": agg.raw(image, audio, image_cls, audio_cls),
            f"{name}.pair": agg(S, mask[:n]),
            f"{name}.pair_by_head": agg(S, mask[:n], heads=False),
            f"{name}.pair_volume": agg.cells(S),
            f"{name}.pair_raw": S,
        }
    return found


def video(case: Case) -> dict[str, Tensor]:
    image, audio, mask, image_cls, audio_cls = features(case.inputs)
    one = features({k.removeprefix("one_"): v for k, v in case.inputs.items() if k.startswith("one_")})
    found: dict[str, Tensor] = {}
    for name, v in case.config["variants"].items():
        agg = aggregation(v)
        S = agg.paired(image, audio[:, None], mask[:, None], image_cls, audio_cls[:, None])
        found |= {
            f"{name}.video_by_head": agg.cells(S, heads=False),
            f"{name}.video_volume": agg.cells(S),
            f"{name}.video_pair": agg(S, mask[:, None]),
        }
        if not agg.cls:
            S = agg.paired(*one)
            found |= {f"{name}.frames_by_head": agg.cells(S, heads=False), f"{name}.frames_volume": agg.cells(S)}
    found["blurred"] = smoothed(found["v00.frames_by_head"].mean(-2), case.config["blur_window"])
    return found


def retrieval(case: Case) -> dict[str, Tensor]:
    x = case.inputs
    by_head = aggregation(case.config["variant"]).all_pairs(
        x["image_feats"], x["audio_feats"], x["audio_mask"], heads=False
    )
    score = by_head.sum(-1)
    found = {"sim_by_head": by_head, "score": score}
    own = score.diagonal()
    for n in (1, 5, 10):
        found[f"A_r{n}"] = ((score > own[None]).sum(0) < n).float().mean()
        found[f"I_r{n}"] = ((score > own[:, None]).sum(1) < n).float().mean()
    return found


def baselines(case: Case) -> dict[str, Tensor]:
    image, audio, _, image_cls, audio_cls = features(case.inputs)
    n, heads = case.config["n_pairs"], case.config["num_heads"]
    pool = SimPool(image.shape[1], case.config["simpool_gamma"])
    load_into(pool, {k.removeprefix("sim_agg.pool."): v for k, v in case.weights.items()}, case.id)
    full = {
        "cavmae": cavmae(image, audio),
        "imagebind": imagebind(image_cls, audio_cls),
        "simpool": simpool(pool, image, audio),
    }
    found = {f"{name}.full": s for name, s in full.items()}
    found |= {f"{name}.full_by_head": s[..., None].expand(-1, -1, heads[name]) for name, s in full.items()}
    found["cavmae.pair"] = full["cavmae"][:n, :n].diagonal()
    # As written in the release: a sum over all pictures.
    found["imagebind.pair_as_written"] = full["imagebind"][:n, :n].sum(1)
    return found
