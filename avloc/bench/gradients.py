"""How far a step's gradient can be trusted: against double precision, under bf16, and under another draw of noise.

Every term of ACL-SSL's and SOUPLE's loss by itself, on batches of the embedded world, from untrained weights or a
checkpoint's. For the comparison of precisions dropout is off and the masks' noise is recorded, so that rounding is all
that differs; the objective itself is float32 in all of them. The other draw has other dropout and other noise: what it
changes is no error, but the spread that training has to average out.

On the embedded world float32 meets float64 (cosine 1.000), and bf16 does not. The first self-attention of its mask
decoder has logits of 1e5 (standard deviation, and of text queries too), so every query takes one key, and the map is
nearly piecewise constant in A. Where two keys tie, a move of A by 1e-4 of its length switches between them, and there
one pair's gradient is 100 times the usual: those are the single batches that spike in any precision. bf16 rounds such
logits by hundreds and takes other keys. This is the world's decoder; whether CLIPSeg's does so has not been measured.
"""

from __future__ import annotations

import copy
import statistics
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from avloc.backbones.clipseg import normalise
from avloc.bench.step import Result, build
from avloc.data.module import AVDataModule
from avloc.methods.acl import ACL
from avloc.methods.acl.losses import Objective
from avloc.methods.load import load_method
from avloc.types import AVBatch

__all__ = ["Noise", "cosine", "gradients", "measure_gradients"]

Noise = tuple[Tensor, Tensor]
TERMS = ("acl_i", "acl_f", "area_reg")


def gradients(
    model: ACL, batch: AVBatch, noise: Noise | None = None, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """The gradient of each term on all trainable parameters.

    Args:
        model: in ``dtype``, or float32 for bfloat16, which is autocast.
        batch: B samples.
        noise: recorded uniform noise of the areas ``[B, B, h, w]`` and the image masks ``[B, 1, H, H]``.
        dtype: float64, float32 or bfloat16.

    Returns:
        float64 ``[parameters]`` by the term's name.
    """
    own = torch.float64 if dtype == torch.float64 else torch.float32
    net = model.network
    image, audio = normalise(batch.image).to(own), batch.audio.to(own)
    with torch.autocast(image.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        features = net.see(image)
        A = net.ask(features, net.hear(audio))
        pairs = net.pairs(image, features, A, noise=None if noise is None else (noise[0].to(own), noise[1].to(own)))
        terms = model.objective(pairs)
    parameters = model.trainable()
    out = {}
    for name in (t for t in TERMS if t in terms):
        found = torch.autograd.grad(terms[name], parameters, retain_graph=True, allow_unused=True)
        each = [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(found, parameters, strict=True)]
        out[name] = torch.cat(each).double()
    return out


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()).clamp_min(1e-300))


def recorded(model: ACL, batch: AVBatch, seed: int) -> Noise:
    """One draw of a step's mask noise."""
    with torch.no_grad():
        features = model.network.see(normalise(batch.image))
        tokens = model.network.hear(batch.audio)
        side = model.network.mask_logits(features.reduced, model.network.ask(features, tokens)[:, :1]).shape[-1]
    B, H = len(batch), batch.image.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(B, B, side, side, generator=generator), torch.rand(B, 1, H, H, generator=generator)


def without_dropout(model: ACL) -> ACL:
    still = copy.deepcopy(model)
    for module in still.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return still


def measure_gradients(
    method: Literal["acl", "souple"] = "acl",
    batches: int = 4,
    batch_size: int = 16,
    seed: int = 0,
    ckpt: Path | None = None,
    root: Path = Path("data"),
) -> Result:
    """Measure; see `avloc.commands.bench_gradients` for the arguments.

    Returns:
        of each term: the gradients' median and largest norm over the batches; the lowest cosine of float32 and of bf16
        with float64, and of two draws of noise with each other; the smallest and largest norm of bf16 over that of
        float64.
    """
    torch.manual_seed(seed)
    world = {"objective": Objective(tau=0.15, p_plus=0.15, p_minus=0.0), "masker": (1.0, 3.0)}
    loaded = load_method(ckpt) if ckpt else build(method, full_size=False, **world)
    assert isinstance(loaded, ACL)
    model = loaded.train()
    data = AVDataModule(
        "world:train", root=str(root), batch_size=batch_size, num_workers=0, seed=seed, input_spec=model.input_spec
    )
    data.prepare_data()
    data.setup("fit")
    still = without_dropout(model)
    double = copy.deepcopy(still).double()
    found: dict[str, list[tuple[float, float, float, float, float]]] = {}
    for i, batch in zip(range(batches), data.train_dataloader(), strict=False):
        noise = recorded(still, batch, i)
        exact = gradients(double, batch, noise, torch.float64)
        single, half = gradients(still, batch, noise), gradients(still, batch, noise, torch.bfloat16)
        draws = []
        for draw in (0, 1):
            torch.manual_seed(draw)
            draws.append(gradients(model, batch))
        for name, g in exact.items():
            norm = float(g.norm())
            line = (
                norm,
                cosine(g, single[name]),
                cosine(g, half[name]),
                float(half[name].norm()) / max(norm, 1e-300),
                cosine(draws[0][name], draws[1][name]),
            )
            found.setdefault(name, []).append(line)
    out: Result = {"method": type(model).__name__, "batches": len(found["area_reg"]), "batch_size": batch_size}
    for name, lines in found.items():
        norms, cosines, halves, lengths, draws_apart = zip(*lines, strict=True)
        out |= {
            f"{name} norm, median": statistics.median(norms),
            f"{name} norm, largest": max(norms),
            f"{name} cosine of float32, lowest": min(cosines),
            f"{name} cosine of bf16, lowest": min(halves),
            f"{name} length of bf16, smallest": min(lengths),
            f"{name} length of bf16, largest": max(lengths),
            f"{name} cosine of two draws, lowest": min(draws_apart),
        }
    return out
