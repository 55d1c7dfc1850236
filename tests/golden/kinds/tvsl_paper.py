"""T-VSL by the equations of its article, behind its towers: features, losses, gradients and maps."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from avloc.methods.tvsl.losses import Scales
from avloc.methods.tvsl.method import losses_of
from avloc.methods.tvsl.network import DESIGNS, TVSLNetwork
from avloc.weights import load_into
from tests.golden.case import Case

TERMS = {"loss": "total", "mcid": "mcid", "audio_cls": "audio_cls", "image_cls": "image_cls", "av": "av"}


def run(case: Case) -> dict[str, Tensor]:
    config = case.config
    design = replace(DESIGNS["published"], normalise="both" if config.get("unit_inputs", True) else "none")
    net = TVSLNetwork(config["dim"], design)
    load_into(net, case.weights, case.id)
    image, audio = case.inputs["image_tokens"], case.inputs["audio_tokens"]
    bank = F.normalize(case.inputs["text_bank"], dim=-1)
    rows = config["classes"]
    most = max(map(len, rows))
    index = torch.tensor([row + [-1] * (most - len(row)) for row in rows])
    there = index >= 0

    scales = Scales(**{name: torch.tensor(value) for name, value in config["scales"].items()})
    losses = losses_of(net, net.prepare(image, audio), bank, index, index, scales)
    losses["loss"].backward()
    results = {f"loss_{theirs}": losses[ours].detach() for ours, theirs in TERMS.items()}
    results |= {f"grad.{name}": p.grad for name, p in net.named_parameters() if p.grad is not None}
    with torch.no_grad():
        tokens = net.prepare(image, audio)
        found = net.separate(tokens, bank[index.clamp(min=0)])
        visual, heard = net.class_features(found)
        maps = net.similarity(tokens, found)[there]
        upsampled = F.interpolate(
            maps.unflatten(1, config["grid"])[:, None], config["size"], mode=design.upsampling, align_corners=False
        )
        return results | {
            "class_logits": net.class_logits(tokens.fused, bank),
            "class_image_features": visual[there],
            "class_audio_features": heard[there],
            "audio_query": found.query[there],
            "visual_query": net.visual_query(tokens, found)[there],
            "token_maps": maps,
            "heatmaps": upsampled[:, 0],
        }
