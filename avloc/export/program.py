"""The inference path of a method as a graph without Python: `torch.export`, and ONNX."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avloc.errors import UsageError
from avloc.methods.base import Localizer
from avloc.types import AVBatch

__all__ = ["TOLERANCE", "Inference", "example", "export_onnx", "export_program"]

TOLERANCE = 1e-4
"""By which a graph's heat, in 0..1, may differ from that of the method: operations are fused otherwise."""


class Inference(nn.Module):
    """What a graph computes: heat and confidence of one picture and one sound."""

    def __init__(self, method: Localizer) -> None:
        super().__init__()
        self.method = method

    def forward(self, image: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Where the sound comes from.

        Args:
            image: uint8 ``[1, 3, H, W]``, RGB, of the side that the method's ``input_spec`` names.
            audio: float32 ``[1, T]`` in [-1, 1] at its rate and of its length.

        Returns:
            heat, float32 ``[1, S, h, w]`` in [0, 1], and confidence ``[1, S]``.
        """
        found = self.method.localize(AVBatch(["0"], image, audio, torch.zeros(1, dtype=torch.long)))
        return found.heatmap, found.confidence


def example(method: Localizer, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A picture and a sound of noise, as the method wants to be fed.

    Raises:
        UsageError: it wants several pictures at once, or padded ones.
    """
    spec = method.input_spec
    if spec.frames > 1 or spec.clip > 1 or spec.resize == "pad":
        raise UsageError(
            f"{type(method).__name__} is fed with several pictures, or with a padded one: it has no such graph."
        )
    random = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (1, 3, spec.image_size, spec.image_size), dtype=torch.uint8, generator=random)
    audio = 0.3 * torch.randn(1, spec.samples, generator=random).clamp(-3, 3)
    return image, audio


def export_program(method: Localizer, path: Path) -> float:
    """Write ``torch.export``'s program of `Inference`, read it again, and compare it with the method.

    Returns:
        the largest difference of heat on three pictures and sounds of noise.

    Raises:
        UsageError: the method's path depends on values that it computes, or the graph answers otherwise.
    """
    program = traced(method)
    torch.export.save(program, path)
    graph = torch.export.load(path).module()
    return compared(method, graph, path)


def export_onnx(method: Localizer, path: Path) -> float | None:
    """Write the same graph as ONNX.

    Returns:
        the largest difference of heat, as ONNX Runtime computes it; None where that is not installed.

    Raises:
        UsageError: the exporter is not installed, cannot write an operation, or the graph answers otherwise.
    """
    absent = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if absent:
        raise UsageError(f"--onnx needs {' and '.join(absent)}: pip install 'avloc[onnx]'.")
    program = traced(method)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program, example(method), dynamo=True, input_names=["image", "audio"],
                output_names=["heat", "confidence"], verbose=False,
            )  # fmt: skip
            assert made is not None
            made.save(str(path))
    except Exception as e:  # of torch, onnx and onnxscript
        raise UsageError(f"{type(method).__name__} cannot be written as ONNX ({first_line(e)}).") from e
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def graph(image: Tensor, audio: Tensor) -> tuple[Tensor, ...]:
        named = zip(session.get_inputs(), (image, audio), strict=True)
        return tuple(map(torch.from_numpy, session.run(None, {i.name: x.numpy() for i, x in named})))

    return compared(method, graph, path)


def traced(method: Localizer) -> Any:
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            graph, inputs = Inference(method).eval(), example(method)
            graph(*inputs)  # tables that are kept between calls are tensors then, not the tracer's
            return torch.export.export(graph, inputs, strict=False)
    except UsageError:
        raise
    except Exception as e:  # torch's tracer knows dozens of kinds
        raise UsageError(
            f"{type(method).__name__} cannot be written as a graph: its path depends on what it computes "
            f"({type(e).__name__}: {first_line(e)}). Leave out --program and --onnx: avloc.load needs neither."
        ) from e


def compared(method: Localizer, graph: Any, path: Path) -> float:
    worst = 0.0
    for seed in (1, 2, 3):
        image, audio = example(method, seed)
        with torch.no_grad():
            own, theirs = Inference(method)(image, audio), graph(image, audio)
        if own[0].shape != theirs[0].shape or own[1].shape != theirs[1].shape:
            path.unlink()
            raise UsageError(f"{path} was removed: it answers {tuple(theirs[0].shape)}, not {tuple(own[0].shape)}.")
        worst = max(worst, (own[0] - theirs[0]).abs().max().item())
    if not worst <= TOLERANCE:
        path.unlink()
        raise UsageError(f"{path} was removed: its heat differs by {worst:.2g} from the method's.")
    return worst


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
