"""One training step of ACL behind BEATs: masks, losses and gradients, with the recorded noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avloc.methods.acl.losses import Objective, batch_areas
from avloc.methods.acl.network import ACLNetwork, Grounding, feature_mask
from avloc.weights import load_into
from tests.golden.case import Case
from tests.golden.kinds.clip_dense import decoded
from tests.golden.kinds.clipseg_audio_text import grounder


class Ears(nn.Module):
    """The case gives BEATs' features instead of sound."""

    def __init__(self, feature_size: int) -> None:
        super().__init__()
        self.feature_size = feature_size

    def forward(self, features: Tensor) -> Tensor:
        return features


class Placeholder:
    """The case gives the prompt as ids: those before the audio's place, and the one behind it."""

    def __init__(self, ids: list[int], pos: int, rows: int) -> None:
        self.ids, self.pos, self.rows = ids, pos, rows

    def encode(self, text: str) -> list[int]:
        return [*self.ids[: self.pos], 0] if text else [0, *self.ids[self.pos : self.rows]]

    def serialise(self) -> str:
        return ""


class RecordedDropout(nn.Module):
    """Dropout whose mask the case recorded (already scaled by 1 / (1 - p))."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask.transpose(1, 2)  # stored as [B, C, T]


def run(case: Case) -> dict[str, Tensor]:
    c = case.config
    model = grounder(case, "av_grounder.")
    model.tokenizer = Placeholder(case.inputs["placeholder_token"][0].tolist(), c["pos"], c["prompt_size"])
    net = ACLNetwork(model, Ears(3 * c["fga_input_size"]), Grounding(template="words {}", pooling="batch"))
    for part in ("audio_proj", "masker_i"):
        state = {k.removeprefix(part + "."): v for k, v in case.weights.items() if k.startswith(part + ".")}
        load_into(getattr(net, part), state, case.id)
    net.audio_proj.eval()
    if c["dropout"] != "disabled":
        use_recorded_dropout(net, case)

    image = decoded(case.inputs["image"])
    features = net.see(image)
    embedding = net.prompt(net.hear(case.inputs["audio_features"]))
    embedding.retain_grad()
    noise = tuple((case.inputs[f"uniform_{i}"].float() + 0.5) / 256 for i in (0, 1))
    pairs = net.pairs(image, features, embedding.expand(len(image), *embedding.shape), noise=noise)
    released = {"tau": 1 / c["beta"], "p_plus": c["p_thr"], "p_minus": c["n_thr"]}
    losses = Objective(*c["loss_w"], **released)(pairs)
    losses["loss"].backward()
    losses = Objective(**released)(pairs) | losses  # the terms of weight 0, too

    with torch.no_grad():
        M = net.mask_logits(features.reduced, pairs.A)
        p_area, n_area = batch_areas(pairs.area)
    results = {
        "audio_driven_embedding": embedding,
        "mask_logits": M[tuple(slice(None, None, s) for s in c["mask_stride"])],
        "feature_mask": feature_mask(M, features.dense.shape[-1])[
            tuple(slice(None, None, s) for s in c["feature_mask_stride"])
        ],
        "v_f": pairs.v_f,
        "v_i": pairs.v_i,
        "p_area": p_area,
        "n_area": n_area,
        "loss.total": losses["loss"],
        "grad.audio_driven_embedding": embedding.grad,
    }
    results |= {f"loss.{k}": v for k, v in losses.items() if k != "loss"}
    for part in ("audio_proj", "masker_i"):
        for name, p in getattr(net, part).named_parameters():
            gradient = torch.zeros_like(p) if p.grad is None else p.grad
            results |= gradient_tensors(f"{part}.{name}", gradient, case)
    return results


def gradient_tensors(name: str, grad: Tensor, case: Case) -> dict[str, Tensor]:
    """The gradient whole, its norm, and its strided slice where the case has a stride for it."""
    stride = case.config.get("grad_strides", {}).get(name, 1)
    return {
        f"grad.{name}": grad,
        f"grad.{name}_norm": grad.norm(),
        f"grad.{name}_slice": grad.flatten()[::stride],
    }


def use_recorded_dropout(net: ACLNetwork, case: Case) -> None:
    mask = case.inputs["unary_dropout_scale"]
    for name, module in list(net.audio_proj.named_modules()):
        if isinstance(module, nn.Dropout):
            parent = net.audio_proj.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], RecordedDropout(mask))
