"""MarginNCE's loss on given features, for several margins."""

from __future__ import annotations

from torch import Tensor

from avloc.methods.two_tower.losses import EZVSL
from tests.golden.case import Case
from tests.golden.towers import given


def run(case: Case) -> dict[str, Tensor]:
    results = {}
    for margin in case.config["margins"]:
        v, a = given(case, "image_features", "audio_features")
        objective = EZVSL(case.config["tau"], margin)
        terms = objective(v, a)
        terms["loss"].backward()
        found = terms | {"logits": objective.logits(v, a), "grad_image": v.grad, "grad_audio": a.grad}
        results |= {f"m{margin:+.2f}.{name}": value for name, value in found.items()}
    return results
