"""Object-guided maps as each script mixes them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from avloc.backbones.resnet import ObjectResNet
from avloc.methods.baselines.ogl import OBJECT_RANGE, ObjectGuide, guided
from avloc.methods.two_tower.method import Upsampling, heat
from avloc.metrics.extended import top_quarter
from avloc.metrics.maps import minmax, resize
from avloc.types import Localization
from avloc.weights import load_into
from tests.golden.case import Case
from tests.golden.towers import SUB, pixels

GRID = (224, 224)


def run(case: Case) -> dict[str, Tensor]:
    c, av = case.config, case.inputs["av"]
    net = ObjectResNet()
    load_into(net.resnet, case.weights, case.id)
    with torch.no_grad():
        objects = net.eval().object_map(pixels(case))
    results = {"object": objects}

    def mixed(own: Tensor, reading: Literal["ezvsl", "slavc"], alpha: float) -> Tensor:
        answer = Localization(own[:, None], own.amax((-2, -1))[:, None])
        return guided(answer, objects, GRID, ObjectGuide("random", alpha, reading)).heatmap[:, 0]

    def put(name: str, maps: Tensor) -> None:
        results[f"{name}_sub"] = maps[:, ::SUB, ::SUB]

    put("ezvsl.object", minmax(resize(objects, GRID, "bilinear", align_corners=True)))
    own: list[tuple[str, Upsampling]] = [("ezvsl", "bilinear_corners"), ("fnac2", "bicubic")]
    for name, upsampling in own:
        shown = heat(av, 224, upsampling)
        put(f"{name}.av", shown)
        put(f"{name}.av_object", mixed(shown, "ezvsl", c["alpha"]))
    scores = heat(av * c["tau"], 224, "bicubic_corners", "affine")
    thing = resize(objects, GRID, "bicubic", align_corners=True) / c["object_max"]
    both = mixed(scores, "slavc", c["alpha_slavc"])
    assert c["object_max"] == OBJECT_RANGE
    for name, maps in (("av", scores), ("object", thing), ("av_object", both)):
        put(f"slavc.{name}", maps)
        results[f"slavc.{name}_confidence"] = top_quarter(maps)
    put("slavc.av_object_relative", minmax(both))
    return results
