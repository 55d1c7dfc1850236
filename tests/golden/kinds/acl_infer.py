"""ACL's heat maps, in every pairing of images and embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from avloc.methods.acl.network import ImageMasker, at_side
from tests.golden.case import Case
from tests.golden.kinds.clip_dense import decoded
from tests.golden.kinds.clipseg_audio_text import grounder


@torch.no_grad()
def run(case: Case) -> dict[str, Tensor]:
    model = grounder(case, "av_grounder.")
    masker = ImageMasker(case.weights["masker_i.w"].item(), case.weights["masker_i.b"].item())
    results = {}
    for call in case.config["calls"]:
        images, embeddings = decoded(case.inputs[call["image"]]), case.inputs[call["embedding"]]
        reduced = model.encode_image(images, reduced=True).reduced
        N, M = len(images), len(embeddings)
        everything = call.get("force_comb", False)
        if everything or (N != M and N > 1 and M > 1):
            asked = embeddings.expand(N, -1, -1)
        elif N == 1:  # one picture, asked with each embedding
            asked = embeddings[None]
        else:
            asked = embeddings.expand(N, -1)[:, None]
        logits = model.decode(reduced, asked)
        if logits.shape[0] == 1 and not everything:
            logits = logits.transpose(0, 1)
        if images.shape[-1] != call["resolution"]:
            logits = at_side(logits, call["resolution"])
        strides = tuple(slice(None, None, s) for s in call["stride"])
        name = call["name"]
        results[f"{name}.heatmap"] = masker.heatmap(logits)[strides]
        if call["store_logits"]:
            results[f"{name}.logits"] = logits[strides]
    return results
