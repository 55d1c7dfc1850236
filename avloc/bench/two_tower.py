"""A step of EZ-VSL, SLAVC or FNAC against its unavoidable passes, and against its paper's formulation as it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any, Literal

import numpy as np
import torch
from scipy.signal import spectrogram
from torch import Tensor, nn
from torch.nn import functional as F

from avloc.bench.step import Result, against
from avloc.methods.base import Localizer
from avloc.methods.two_tower import EZVSL, FNAC, SLAVC
from avloc.methods.two_tower.method import TwoTower
from avloc.methods.two_tower.network import TwoTowers, similarity
from avloc.types import AVBatch

__all__ = [
    "Member",
    "build_two_tower",
    "measure_two_tower",
    "plain_loss",
    "sounds_and_pictures",
    "unavoidable_two_tower",
]

Member = Literal["ezvsl", "slavc", "fnac"]
CLASSES: dict[str, type[TwoTower]] = {"ezvsl": EZVSL, "slavc": SLAVC, "fnac": FNAC}

WORLD: dict[str, Any] = {
    "image_weights": "world:resnet18",
    "tower": {"channels": [8, 16, 32, 64], "stem_width": 8, "output_stride": 8},
    "dim": 64,
    "image_size": 64,
    "seconds": 2.0,
    "hop": 512,
}


def build_two_tower(member: Member, full_size: bool, **options: object) -> TwoTower:
    """The method with the embedded world's towers, or at the published size with random weights; of FNAC behind its
    warm-up, with nothing hidden of a spectrogram."""
    settings: dict[str, Any] = (dict[str, Any]() if full_size else WORLD) | {"channels_last": True} | options
    if member == "fnac":
        from avloc.methods.two_tower.views import Masks

        settings = {"warm_up": 0, "masks": Masks()} | settings
    return CLASSES[member](**settings)


def sounds_and_pictures(model: Localizer, batch_size: int) -> AVBatch:
    """Random pictures and sounds of the method's size."""
    g, spec = torch.Generator().manual_seed(0), model.input_spec
    image = torch.randint(256, (batch_size, 3, spec.image_size, spec.image_size), generator=g).to(torch.uint8)
    audio = 0.1 * torch.randn(batch_size, spec.samples, generator=g)
    keys = [f"random{i}" for i in range(batch_size)]
    return AVBatch(keys, image, audio, torch.full((batch_size,), -1)).to(model.device)


def unavoidable_two_tower(model: TwoTower, batch: AVBatch) -> None:
    """What any implementation of the objective has to compute for B samples.

    Both towers once per sample, and all B x B similarities of places and sounds, with their backward; of SLAVC also the
    momentum towers once per sample, without graph, and the similarities of both heads with either of their features.
    """
    image, heard = model.look(batch), model.listen(batch)
    v, a = model.network(image, heard)
    if model.network.momentum is None:
        similarity(v[0], a[0]).mean().backward()
        return
    with torch.no_grad():
        v_target, a_target = model.network.momentum(image, heard)
    pairs = [similarity(v[k], a_target[k]) for k in (0, 1)] + [similarity(v_target[k], a[k]) for k in (0, 1)]
    torch.stack([S.mean() for S in pairs]).sum().backward()


def plain_loss(model: TwoTower, batch: AVBatch) -> Tensor:
    """The objective as the papers write it: a spectrogram of scipy's for every sound, as their loaders compute it,
    every softmax written out, parameter after parameter of the momentum copy.

    Equal to ``training_losses`` to rounding, but for the dropout's draw.
    """
    end = model.front_end
    window = dict(fs=end.sample_rate, nperseg=end.length, noverlap=end.length - end.hop)
    heard = [np.log(spectrogram(sound, **window)[2] + 1e-7) / 12 for sound in batch.audio.clamp(-1, 1).cpu().numpy()]
    spectrograms = torch.from_numpy(np.stack(heard)).float()[:, None].to(model.device)
    image, net = model.look(batch).contiguous(), model.network
    if isinstance(model, SLAVC):
        return plain_slavc(model, net, image, spectrograms)
    v, a = plain_features(net, image, spectrograms)[0]
    assert isinstance(model, EZVSL | FNAC)
    tau, target = model.objective.tau, torch.arange(len(a), device=a.device)
    S = torch.einsum("nchw,mc->nmhw", v, a) / tau
    z = S.flatten(2).max(2).values
    loss = F.cross_entropy(z, target) + F.cross_entropy(z.permute(1, 0), target)
    if not isinstance(model, FNAC):
        return loss
    o = model.objective
    own = torch.stack([S[n, n] for n in range(len(S))])
    low, high = own.flatten(1).min(1).values[:, None, None], own.flatten(1).max(1).values[:, None, None]
    inside = ((own - low) / (high - low + 1e-5) > o.threshold).float()
    f, u = (v * inside[:, None]).mean((2, 3)), v.mean((2, 3))
    pairs, sounds, pictures, fore = (
        torch.softmax(x, 1) for x in (z, a @ a.t() / tau, u @ u.t() / tau, f @ f.t() / tau)
    )
    terms = (o.fns_1, sounds, pairs), (o.tns, sounds, fore), (o.fns_2, pictures, pairs)
    for weight, one, other in terms:
        loss = loss + weight * (one - other).abs().mean()
    return loss


def plain_features(net: TwoTowers, image: Tensor, spectrograms: Tensor) -> list[tuple[Tensor, Tensor]]:
    """v and a of each head."""
    seen = net.drop(net.imgnet.forward_features(image))  # type: ignore[operator]
    heard = F.adaptive_max_pool2d(net.audnet.forward_features(spectrograms), 1).flatten(1)  # type: ignore[operator]
    return [
        (F.normalize(see(seen), dim=1), F.normalize(hear(heard), dim=1))
        for see, hear in zip(net.img_proj, net.aud_proj, strict=True)
    ]


def plain_slavc(model: SLAVC, net: TwoTowers, image: Tensor, spectrograms: Tensor) -> Tensor:
    online, copy = plain_features(net, image, spectrograms), net.momentum
    assert copy is not None
    parts = (
        ("imgnet", model.m_image),
        ("img_proj", model.m_image),
        ("audnet", model.m_audio),
        ("aud_proj", model.m_audio),
    )
    with torch.no_grad():
        for name, m in parts:
            theirs, own = copy.get_submodule(name).parameters(), net.get_submodule(name).parameters()
            for behind, ahead in zip(theirs, own, strict=True):
                behind.data = behind.data * m + ahead.data * (1 - m)
        target = plain_features(copy, image, spectrograms)
    tau, labels = model.objective.tau, torch.arange(len(image), device=image.device)

    def logits(v: Iterable[Tensor], a: Iterable[Tensor]) -> Tensor:
        which, where = (torch.einsum("nchw,mc->nmhw", x, y).flatten(2) / tau for x, y in zip(v, a, strict=True))
        return torch.log((torch.softmax(which, 1) * torch.softmax(where, 2)).sum(2))

    (v, a), (v_target, a_target) = (zip(*heads, strict=True) for heads in (online, target))
    return F.cross_entropy(logits(v, a_target), labels) + F.cross_entropy(logits(v_target, a), labels)


def plain_step(model: TwoTower, batch: AVBatch, precision: Literal["32", "bf16"]) -> Callable[[], None]:
    """An update of a copy of a method by `plain_loss`, channels first as the releases have them, with their Adam."""
    copy = deepcopy(model)
    copy.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    copy.memory_format = torch.contiguous_format
    optimizer = torch.optim.Adam(nn.ParameterList(copy.trainable()), lr=1e-4)

    def step() -> None:
        with torch.autocast(copy.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = plain_loss(copy, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measure_two_tower(
    member: Member,
    batch_size: int = 16,
    full_size: bool = False,
    steps: int = 3,
    precision: Literal["32", "bf16"] = "32",
) -> Result:
    """Measure; see `avloc.bench.command.bench_step` for the arguments.

    Returns:
        As `avloc.bench.step.measure_step`; ``plain_s`` of an update by `plain_loss`, and ``plain_ratio``, its multiple
        of ours.
    """
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_two_tower(member, full_size).to(device).train()
    batch = sounds_and_pictures(model, batch_size)
    told = against(
        model,
        batch,
        lambda: unavoidable_two_tower(model, batch),
        precision,
        steps,
        plain=plain_step(model, batch, precision),
    )
    return {"method": member, "size": "full" if full_size else "world"} | told
