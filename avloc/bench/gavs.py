"""GAVS's batched training step against the release's way, one frame after the other, from one run on one machine."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from avloc.bench.step import Result, named, peak_of, seconds, under
from avloc.methods.gavs import GAVS
from avloc.methods.gavs.losses import Objective, alignment
from avloc.methods.gavs.method import size_of
from avloc.types import AVBatch

__all__ = ["build", "count_flops", "measure_gavs", "one_by_one", "random_batch"]

WORLD: dict[str, Any] = {
    "sam": "world:sam",
    "vggish": "world:vggish",
    "tune_v": 2,
    "seconds": 2.0,
    "objective": Objective("dice_loss"),
}
FULL: dict[str, Any] = {"sam": "random", "vggish": "random", "tune_v": 9}
FRAMES = 5  # of a video of S4 and MS3


def build(full_size: bool) -> GAVS:
    """The published method with the embedded world's towers, or at the published size with random weights."""
    return GAVS(**(FULL if full_size else WORLD))


def random_batch(model: GAVS, batch_size: int, full_size: bool) -> AVBatch:
    """Frames of noise, five of a video; at full size as AVSBench has them, 720 x 1280 pixels."""
    spec, g = model.input_spec, torch.Generator().manual_seed(0)
    side = spec.image_size
    seen, native = ((side * 9 // 16, side), (720, 1280)) if full_size else ((side, side), (224, 224))
    image = torch.zeros(batch_size, 3, side, side, dtype=torch.uint8)
    image[..., : seen[0], : seen[1]] = torch.randint(256, (batch_size, 3, *seen), generator=g).to(torch.uint8)
    audio = 0.1 * torch.randn(batch_size, spec.samples, generator=g)
    return AVBatch(
        [f"random{i}" for i in range(batch_size)],
        image,
        audio,
        torch.full((batch_size,), -1),
        truth=(torch.rand(batch_size, 1, *native, generator=g) > 0.8).float(),
        video=[f"video{i // FRAMES}" for i in range(batch_size)],
        size=torch.tensor([seen] * batch_size),
    ).to(model.device)


def one_by_one(model: GAVS, batch: AVBatch, audio: Tensor) -> Tensor:
    """The loss of `GAVS.training_losses`, as the release comes to it.

    Each frame goes through the modules of segment-anything alone; one backward follows all frames, as it follows those
    of a video there.

    Args:
        model: of the published design.
        batch: with truth.
        audio: F_A ``[B, d_m]``, which the release reads from files.
    """
    net, sam = model.network, model.network.model_v
    assert batch.truth is not None
    assert batch.size is not None
    losses, cues = [], []
    with adapters_inside(model):
        for i, (height, width) in enumerate(batch.size.tolist()):
            embedding = sam.image_encoder(net.prepare(batch.image[i : i + 1, :, :height, :width]))
            cue = net.visual_cue(embedding)
            assert cue is not None
            logits, _ = sam.mask_decoder(
                image_embeddings=embedding,
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=net.prompt(audio[i : i + 1], cue),
                dense_prompt_embeddings=sam.no_mask().expand_as(embedding),
                multimask_output=False,
            )
            truth = (batch.truth[i : i + 1].amax(1, keepdim=True) >= 0.5).float()
            full = sam.upscale(logits, (height, width), size_of(truth))
            losses.append(model.objective.frames(full, truth))
            cues.append(cue)
    align = alignment(torch.cat(cues), audio, batch.video, model.objective.margin)
    return torch.cat(losses).mean() + model.objective.lambda_align * align


@contextmanager
def adapters_inside(model: GAVS) -> Iterator[None]:
    """Let the package's own forward passes meet the adapters, where the published design has them."""
    encoder, decoder = model.network.model_v.image_encoder, model.network.model_v.mask_decoder

    def adapted(adapter: Callable[[Tensor], Tensor], out: Tensor) -> Tensor:
        return adapter(out) + out

    def as_context(adapter: Callable[[Tensor], Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
        context = adapter(given["v"])
        return given | {"k": given["k"] - given["v"] + context, "v": context}

    hooks = [
        block.mlp.register_forward_hook(lambda m, a, out, adapter=block.adapter_v: adapted(adapter, out))
        for block in encoder.blocks[model.network.first_adapter :]
    ]
    hooks += [
        layer.cross_attn_image_to_token.register_forward_pre_hook(
            lambda m, a, given, adapter=layer.adapter_tf: (a, as_context(adapter, given)), with_kwargs=True
        )
        for layer in decoder.transformer.layers
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def count_flops(model: GAVS, run: Callable[[], object]) -> tuple[int, int]:
    """FLOPs of ``run``, and those of them in the image encoder below its adapters."""
    net = model.network
    encode_frozen, below = net.encode_frozen, 0

    def counted(pixels: Tensor) -> Tensor:
        nonlocal below
        before = counter.get_total_flops()
        out = encode_frozen(pixels)
        below += counter.get_total_flops() - before
        return out

    net.encode_frozen = counted  # type: ignore[method-assign]
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            run()
    finally:
        del net.encode_frozen  # the class's own shows again
    return int(counter.get_total_flops()), int(below)


def measure_gavs(
    batch_size: int = 16,
    full_size: bool = False,
    steps: int = 3,
    precision: Literal["32", "bf16"] = "32",
    stored: bool = False,
) -> Result:
    """Measure; see `avloc.bench.command.bench_step` for the arguments.

    The release reads features of the sounds from files, so ``step_s`` and ``loop_s`` are without VGGish;
    ``hear_s`` and ``loop_hear_s`` are its own times, for the batch and for its sounds one by one. The loop always
    sees pictures: the release cannot read stored features of those.

    Returns:
        ``step_s``, ``loop_s`` (medians), ``speedup``, ``frames_per_s``, ``loop_frames_per_s``; ``hear_s``,
        ``loop_hear_s``, and ``hearing_speedup`` with them on both sides; FLOPs of a step and of its image encoder
        below the adapters, from pictures and from stored features; ``peak_bytes`` and ``loop_peak_bytes`` (CUDA's
        peak, or the process's on a CPU), and what was run on what.
    """
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build(full_size).to(device).train()
    pictures = random_batch(model, batch_size, full_size)
    features = replace(pictures, stored={"frozen": model.frozen(pictures).half()})
    learn, _ = under(model, precision)
    hear, sounds = model.hear, pictures.audio
    audio = hear(sounds)
    model.hear = lambda _: audio  # type: ignore[method-assign, assignment]

    def step(batch: AVBatch = features if stored else pictures) -> None:
        learn(lambda: model.training_losses(batch)["loss"])

    def loop() -> None:
        learn(lambda: one_by_one(model, pictures, audio))

    def hear_all() -> None:
        hear(sounds)

    def hear_each() -> None:
        for sound in sounds:
            hear(sound[None])

    step()  # warms up; the peaks are those of the second pass
    peak, loop_peak = peak_of(step, device), peak_of(loop, device)
    rounds = [[seconds(run, device) for run in (step, loop, hear_all, hear_each)] for _ in range(steps)]
    step_s, loop_s, hear_s, loop_hear_s = (statistics.median(times) for times in zip(*rounds, strict=True))
    flops, below = count_flops(model, lambda: step(pictures))
    stored_flops, stored_below = count_flops(model, lambda: step(features))
    return {
        "method": "gavs",
        "batch_size": batch_size,
        "size": "full" if full_size else "world",
        "input": "stored features" if stored else "pictures",
        "precision": precision,
        "device": named(device),
        "step_s": step_s,
        "loop_s": loop_s,
        "speedup": loop_s / step_s,
        "frames_per_s": batch_size / step_s,
        "loop_frames_per_s": batch_size / loop_s,
        "hear_s": hear_s,
        "loop_hear_s": loop_hear_s,
        "hearing_speedup": (loop_s + loop_hear_s) / (step_s + hear_s),
        "flops": flops,
        "encoder_flops": below,
        "stored_flops": stored_flops,
        "stored_encoder_flops": stored_below,
        "peak_bytes": peak,
        "loop_peak_bytes": loop_peak,
    }
