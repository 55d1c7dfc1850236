"""The releases' checkpoints under `TwoTowers`' names.

Each repository wraps its state dict in its own way: LVS and Alignment under ``model_state_dict``, EZ-VSL, SLAVC and
FNAC under ``model``, SSL-TIE under ``state_dict``; names begin with ``module.`` where several GPUs trained. LVS's class
and those after it carry layers that they never use (a classifier, stems for other inputs); they are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from avloc.methods.two_tower.network import TwoTowers
from avloc.weights import WeightError, load_into, read_state

__all__ = ["load_official", "official_state", "own_key"]

WRAPPERS = ("model", "model_state_dict", "state_dict")
UNUSED = ("imgnet.fc.", "audnet.fc.", "imgnet.conv1_a.", "imgnet.conv1_flow.", "audnet.conv1_flow.")
UNUSED_OF_SSL_TIE = ("vision_fc1.", "conv3.", "norm3.")


def load_official(network: TwoTowers, path: Path) -> None:
    """Load a release's checkpoint.

    Raises:
        WeightError: the file is damaged, would run code, or is of another model, of another member of the family, or of
            another width.
    """
    content = read_state(path)
    state = official_state(content)
    found, wanted = design_of(state), network.design
    if not found:
        raise WeightError(
            f"{path} is no two-tower checkpoint: it has {sorted(map(str, content))[:4]}, and neither imgnet nor audnet."
        )
    if found != wanted:
        raise WeightError(
            f"{path} is a checkpoint of {MEMBERS[found]}, but the configuration builds {MEMBERS[wanted]}. Take that "
            "member's class, or another file."
        )
    load_into(network, state, str(path))


MEMBERS = {
    "headless": "LVS, SSL-TIE or Alignment (towers alone)",
    "one_head": "EZ-VSL, MarginNCE or FNAC (one head on each tower)",
    "two_heads": "SLAVC (two heads on each tower, and a momentum copy)",
}


def design_of(state: dict[str, Tensor]) -> str:
    """The `Design` that a state dict is of; "" for none."""
    if not {"imgnet.conv1.weight", "audnet.conv1.weight"} <= state.keys():
        return ""
    if "img_proj.1.weight" in state:
        return "two_heads"
    return "one_head" if "img_proj.0.weight" in state else "headless"


def official_state(content: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, unwrapped, under `TwoTowers`' names; what lies beside them (epochs, best scores,
    the optimiser) is left out."""
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    tensors = {key.replace("module.", ""): value for key, value in content.items() if isinstance(value, Tensor)}
    if "audnet.conv1_a.weight" in tensors:  # the stem that hears; that of colours is never used there
        tensors.pop("audnet.conv1.weight", None)
    named = {own_key(key): value for key, value in tensors.items()}
    return {key: value for key, value in named.items() if key is not None}


def own_key(key: str) -> str | None:
    """`TwoTowers`' name of a release's tensor (without ``module.``); None for one that the release never uses."""
    if key.startswith(UNUSED + UNUSED_OF_SSL_TIE):
        return None
    if key.startswith("momentum_"):
        return f"momentum.{own_key(key.removeprefix('momentum_'))}"
    if key == "audnet.conv1_a.weight":
        return "audnet.conv1.weight"
    for head in ("img_proj", "aud_proj"):
        if key.startswith(head):
            number, _, rest = key.removeprefix(head).partition(".")
            return f"{head}.{int(number or 1) - 1}.{rest}"
    return key
