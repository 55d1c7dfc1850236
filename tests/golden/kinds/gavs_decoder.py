"""GAVS as released: masks, losses and gradients of a video's frames in one batch, and one optimiser step."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from avloc.backbones.sam import SAM
from avloc.methods.gavs.losses import Objective
from avloc.methods.gavs.network import DESIGNS, Design, GAVSNetwork, by_frame
from tests.golden.case import Case
from tests.golden.kinds.sam_prompt_decoder import load_parts, sam_config


def network(c: dict[str, Any]) -> GAVSNetwork:
    assert c["audio_proj_act"] == "relu"
    released = vars(DESIGNS["released"])
    sizes = {"hidden": c["audio_proj_hidden"], "adapter_hidden": c["adapter_hidden"], "activation": c["adapter_act"]}
    net = GAVSNetwork(SAM(sam_config(c)), Design(**released | sizes), tune_v=c["tune_v"], audio_size=c["audio_dim"])
    return net.train(c["mode"] == "train")


def run(case: Case) -> dict[str, Tensor]:
    c, given = case.config, case.inputs
    net = network(c)
    load_parts(net.model_v, {k.removeprefix("model_v."): v for k, v in case.weights.items()}, case.id)
    trained = {k: p for k, p in net.named_parameters() if k in c["trainable"]}
    missing = [k for k, p in net.named_parameters() if p.requires_grad and k not in trained and "image_enc" not in k]
    assert len(trained) == len(c["trainable"])
    assert all(p.requires_grad for p in trained.values())
    assert not missing
    audio, noise = given["audio"], given.get("noise_unit")
    embedding = net.encode(given["image"]) if "image" in given else given["image_embedding"]

    results: dict[str, Tensor] = {}
    with torch.no_grad():
        clean = net.model_v.mask_decoder.audio_proj(audio)[:, None]
        masks, iou = net.ask(embedding, audio, clean, slice(None))
        results |= {"prompt_frame0": clean[:1], "all_masks_frame0": masks[:1], "all_iou_frame0": iou[:1]}
        results |= {"low_res_masks": masks[:, :1], "iou": iou[:, :1]}
        if noise is not None:
            results["audio_used"] = net.training_noise(audio, noise)
    logits, _ = net.ask(embedding, audio, net.prompt(audio, noise=noise))
    original = tuple(c["original_size"])
    upscale = partial(net.model_v.upscale, input_size=tuple(c["input_size"]), size=original)
    results["pred_logits"] = upscale(logits)
    target = given["mask"].float()[:, None]
    objective = Objective(c["loss"], lambda_align=0)
    frames = by_frame(lambda z, t: objective.frames(upscale(z), t), logits, target, chunk=2)
    loss = frames.mean()
    loss.backward()
    results |= {"frame_loss": frames, "loss": loss}
    sample = partial(strided, stride=c["grad_stride"])
    for name, p in trained.items():
        results |= {f"grad/{name}": sample(p.grad), f"grad_norm/{name}": p.grad.norm()}
    if c["adamw_step"]:
        torch.optim.AdamW(trained.values(), **c["adamw"]).step()
        results |= {f"after_step/{name}": sample(p.detach()) for name, p in trained.items()}
    return results


def strided(x: Tensor, stride: int) -> Tensor:
    return x.flatten()[::stride] if x.numel() > 1024 else x.flatten()
