"""`avloc.methods.acl.tokenizer` against the released audio projection, gradients included."""

from __future__ import annotations

from torch import Tensor

from avloc.methods.acl.tokenizer import AudioTokenizer
from avloc.weights import load_into
from tests.golden.case import Case


def run(case: Case) -> dict[str, Tensor]:
    c = case.config
    tokenizer = AudioTokenizer(c["input_size"], c["output_size"]).eval()
    load_into(tokenizer, case.weights, case.id)
    features = case.inputs["features"].requires_grad_()
    token = tokenizer(features).squeeze(1)
    loss = (token * case.inputs["cotangent"]).sum()
    loss.backward()
    actual = {"token": token, "loss": loss}
    for name, leaf in [*tokenizer.named_parameters(), ("features", features)]:
        assert leaf.grad is not None, name
        stride = c.get("grad_strides", {}).get(name, 1)
        actual |= {
            f"grad.{name}": leaf.grad,
            f"grad.{name}_slice": leaf.grad.flatten()[::stride],
            f"grad.{name}_norm": leaf.grad.norm(),
        }
    return actual
