"""The feature mask of the patch grid, and the same mask upsampled to hide pixels (ACL-SSL, table 13, row 2)."""

from __future__ import annotations

from torch import Tensor

from avloc.methods.acl.network import feature_mask, upsampled
from tests.golden.case import Case


def run(case: Case) -> dict[str, Tensor]:
    mask = feature_mask(case.inputs["mask_logits"], case.config["grid"])
    return {"feature_mask": mask, "image_mask": upsampled(mask, case.config["side"])}
