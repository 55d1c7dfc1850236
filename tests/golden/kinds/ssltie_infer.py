"""SSL-TIE: LVS's network twice, the transformation between, the equivariance, and the mel spectrogram."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avloc.frontends.spectrogram import MelDecibels
from avloc.methods.two_tower.losses import SSLTIE
from avloc.methods.two_tower.network import matching, similarity
from avloc.methods.two_tower.views import Transformation
from avloc.metrics.maps import flip_minmax, resize
from tests.golden.case import Case
from tests.golden.kinds.lvs_net import objective_of, sub, tensors
from tests.golden.towers import SUB, after, gradients, network, pixels, tiled


def run(case: Case) -> dict[str, Tensor]:
    c = case.config
    distance = {"mse": "mse", "l1loss": "l1"}[c["equi_loss_type"]]
    lvs = objective_of(case)
    objective = SSLTIE(lvs, c["trans_equi_weight"], distance, c["heatmap_no_grad"])  # type: ignore[arg-type]
    net, official = network(case, "headless")
    image, spectrogram = pixels(case), case.inputs["spectrogram"]
    results: dict[str, Tensor] = {}
    if "spectrogram" in c["parts"]:
        results |= decibels(case)
    if "eval" in c["parts"]:
        with torch.no_grad():
            v, a = (x[0] for x in net.eval()(image, spectrogram))
        found = tensors(v, a, lvs) | sub(v, a) | {"pair_max": similarity(v, a).amax((-2, -1))}
        found["map224_sub"] = flip_minmax(resize(found["map"], (224, 224)))[:, ::SUB, ::SUB]
        results |= {f"eval.{name}": value for name, value in found.items()}
    transform = Transformation(torch.tensor(c["angles"]).float(), c["scale"], c["hflip"])
    results["tf_matrices"] = transform.matrices()
    net.train()
    v, a = (x[0] for x in net(image, spectrogram))
    other = transform(image)
    v_other, a_other = (x[0] for x in net(other, spectrogram))
    wanted = transform(matching(v, a))
    terms = objective(v, v_other, a, a_other, wanted)
    terms["loss"].backward()
    found = {
        "loss": terms["loss"],
        "loss_cl": terms["contrast"],
        "loss_cl_transformed": terms["contrast_transformed"],
        "loss_equivariance": terms["equivariance"],
        "logits": lvs.logits(v, a),
        "logits_transformed": lvs.logits(v_other, a_other),
        "map": matching(v, a),
        "map_transformed": matching(v_other, a_other),
        "transformed_map": wanted,
        "transformed_image_sub": other[:, :, ::11, ::11],
    }
    results |= {f"train.{name}": value for name, value in found.items()}
    results |= unused(case, similarity(v, a), similarity(v_other, a_other))
    return results | gradients(net, official, "train.") | after(net, official)


def unused(case: Case, *maps: Tensor) -> dict[str, Tensor]:
    """The release passes its maps through a layer whose output it drops; what moves there is compared too."""
    conv, norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)
    conv.load_state_dict({k.removeprefix("conv3."): v for k, v in case.weights.items() if k.startswith("conv3.")})
    norm.load_state_dict({k.removeprefix("norm3."): v for k, v in case.weights.items() if k.startswith("norm3.")})
    with torch.no_grad():
        for S in maps:
            norm(conv(S.diagonal().movedim(-1, 0)[:, None]))
    return {f"train.after.norm3.{name}": value for name, value in norm.named_buffers()}


def decibels(case: Case) -> dict[str, Tensor]:
    rate = case.config["wave_rate"]
    waveform = case.inputs["waveform"]
    if not waveform.is_floating_point():
        waveform = waveform / 32768
    spectrogram = MelDecibels(rate)(tiled(waveform[None], 10 * rate))[0, 0]
    return {
        "spectrogram_shape": torch.tensor(spectrogram.shape),
        "spectrogram_db_sub": spectrogram[::2, ::7],
        "spectrogram_db_mean_time": spectrogram.mean(1),
    }
