"""What the runners of the two-tower kinds share."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from avloc.backbones.resnet import normalised
from avloc.methods.two_tower.checkpoints import official_state
from avloc.methods.two_tower.network import Design, TwoTowers
from avloc.weights import load_into
from tests.golden.case import Case

SUB = 9  # every ninth pixel of a map of 224


class RecordedDropout(nn.Module):
    """Dropout whose mask (kept = 1) the case recorded."""

    def __init__(self, mask: Tensor, p: float) -> None:
        super().__init__()
        self.mask, self.p = mask.float(), p

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask / (1 - self.p) if self.training else x


def network(case: Case, design: Design) -> tuple[TwoTowers, dict[str, str]]:
    """The network with the case's weights, and the official name of each of its tensors."""
    net = TwoTowers(design, dim=case.config.get("out_dim", 512))
    state = official_state({"model": case.weights})
    load_into(net, state, case.id)
    official = {value.data_ptr(): key for key, value in case.weights.items() if value.numel()}
    return net, {key: official[value.data_ptr()] for key, value in state.items()}


def pixels(case: Case) -> Tensor:
    image = case.inputs["image"]
    repeat = case.config.get("repeat", 224 // case.config["low"])
    image = image.repeat_interleave(repeat, -1).repeat_interleave(repeat, -2)
    return normalised(image, (image.shape[-2], image.shape[-1]))


def gradients(net: nn.Module, official: dict[str, str], prefix: str) -> dict[str, Tensor]:
    """Norm, projection on a seeded direction, and entries over their root mean square, of every gradient."""
    found = {}
    for name, p in net.named_parameters():
        if p.grad is None:
            continue
        key = official[name]
        direction = torch.randn(p.shape, generator=torch.Generator().manual_seed(zlib.crc32(f"grad:{key}".encode())))
        flat = p.grad.flatten() / p.grad.square().mean().sqrt()
        found[f"{prefix}grad_norm.{key}"] = p.grad.norm()
        found[f"{prefix}grad_dot.{key}"] = (p.grad * direction).sum() / p.grad.norm()
        found[f"{prefix}grad_sub.{key}"] = flat[:: max(1, flat.numel() // 64)][:64]
    return found


def after(net: nn.Module, official: dict[str, str]) -> dict[str, Tensor]:
    """The statistics of BatchNorm behind a training pass."""
    return {f"train.after.{official[name]}": value.clone() for name, value in net.named_buffers() if name in official}


def adam(net: nn.Module, case: Case, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    c = case.config
    optimizer = torch.optim.Adam(net.parameters(), lr=c["lr"], weight_decay=c["weight_decay"])
    losses = []
    for _ in range(c["adam_steps"]):
        value = loss()
        losses.append(value.detach())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return {"adam_losses": torch.stack(losses)}


def given(case: Case, *names: str) -> list[Tensor]:
    """Inputs that collect gradients."""
    return [case.inputs[name].clone().requires_grad_() for name in names]


def grads(case: Case, names: list[str], tensors: list[Tensor]) -> dict[str, Tensor]:
    return {f"grad.{name}": x.grad for name, x in zip(names, tensors, strict=True) if x.grad is not None}


def tiled(x: Tensor, samples: int) -> Tensor:
    """``[B, n]`` repeated and cut to ``samples``."""
    return x.repeat(1, -(-samples // x.shape[1]))[:, :samples]
