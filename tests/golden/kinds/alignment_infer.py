"""SSLalignment's test of its own checkpoints: spectrogram, features, maps, and maps with objects in them."""

from __future__ import annotations

import torch
from torch import Tensor

from avloc.frontends.spectrogram import LogSpectrogram
from avloc.methods.two_tower.network import matching, similarity
from avloc.metrics.maps import flip_minmax, minmax, resize
from tests.golden.case import Case
from tests.golden.kinds.lvs_net import sub
from tests.golden.towers import SUB, network, pixels


def run(case: Case) -> dict[str, Tensor]:
    c = case.config
    hear = LogSpectrogram(c["sample_rate"], hop=512 - c["noverlap"])
    spectrogram = hear(case.inputs["waveform"] / 32768)
    net, _ = network(case, "headless")
    with torch.no_grad():
        v, a = (x[0] for x in net.eval()(pixels(case), spectrogram))
    results = {"map": matching(v, a), "pair_max": similarity(v, a).amax((-2, -1)), **sub(v, a)}
    results["spectrogram_sub"] = spectrogram[:, 0, ::4, ::6]
    for name, corners in (("vggss", False), ("other", True)):
        shown, thing = (
            flip_minmax(resize(x, (224, 224), align_corners=corners))
            for x in (results["map"], case.inputs["object_map"])
        )
        mixed = minmax(c["alpha"] * shown + (1 - c["alpha"]) * thing)
        results |= {f"{name}.map_sub": shown[:, ::SUB, ::SUB], f"{name}.map_object_sub": mixed[:, ::SUB, ::SUB]}
    return results
