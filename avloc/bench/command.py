"""`avloc bench`: speed and memory, as ratios from one run on one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from avloc.errors import UsageError

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("step")
def bench_step(
    method: Annotated[
        Literal["acl", "souple", "gavs", "seac", "tvsl", "ezvsl", "slavc", "fnac", "denseav"],
        typer.Option(help="Whose step."),
    ] = "souple",
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Samples; 8 by default, 16 frames of GAVS, 32 of SeAC, 16 of the others.", show_default=False
        ),
    ] = None,
    full_size: Annotated[
        bool, typer.Option(help="The published sizes with random weights instead of the embedded world's.")
    ] = False,
    steps: Annotated[int, typer.Option(help="Timed repetitions; the median is printed.", min=1)] = 3,
    precision: Annotated[Literal["32", "bf16"], typer.Option(help="Of the autocast.")] = "32",
    recompute: Annotated[bool, typer.Option(help="Recompute the decoder in backward (ACL and SOUPLE).")] = False,
    compile: Annotated[bool, typer.Option(help="Compile the vision tower (ACL and SOUPLE).")] = False,
    stored: Annotated[
        bool, typer.Option(help="The image encoder's frozen part comes from stored features (GAVS).")
    ] = False,
    json: Json = False,
) -> None:
    """Time, memory and FLOPs of a training step.

    ACL and SOUPLE against the passes that the step cannot do without; GAVS against its release's way, a loop that feeds
    the same frames one by one. SeAC's step reads stored features; told are the shares of VGGish and of the association
    module, without which no implementation could do. T-VSL's step has two sources; told is that of four, too.
    EZ-VSL, SLAVC and FNAC against their unavoidable passes, and against the formulation of their papers as it stands;
    DenseAV against its unavoidable passes.

    Example: `avloc bench step --method gavs --stored`
    """
    from avloc.bench.step import print_result

    options = {"--recompute": recompute, "--compile": compile, "--stored": stored}
    taken = {"acl": {"--recompute", "--compile"}, "souple": {"--recompute", "--compile"}, "gavs": {"--stored"}}
    if refused := [name for name, given in options.items() if given and name not in taken.get(method, ())]:
        raise UsageError(f"bench step --method {method} has no {' and no '.join(refused)}. Leave it out.")
    if method == "gavs":
        from avloc.bench.gavs import measure_gavs

        result = measure_gavs(batch_size or 16, full_size, steps, precision, stored)
    elif method == "seac":
        from avloc.bench.seac import measure_seac

        result = measure_seac(batch_size or 32, full_size, steps, precision)
    elif method == "tvsl":
        from avloc.bench.tvsl import measure_tvsl

        result = measure_tvsl(batch_size or 16, full_size, steps, precision)
    elif method == "ezvsl" or method == "slavc" or method == "fnac":
        from avloc.bench.two_tower import measure_two_tower

        result = measure_two_tower(method, batch_size or 16, full_size, steps, precision)
    elif method == "denseav":
        from avloc.bench.denseav import measure_denseav

        result = measure_denseav(batch_size or 16, full_size, steps, precision)
    else:
        from avloc.bench.step import measure_step

        result = measure_step(method, batch_size or 8, full_size, steps, precision, recompute, compile)
    print_result(result, json)


@app.command("loader")
def bench_loader(
    train: Annotated[
        str, typer.Option(help="Training set, as in a YAML; by default one of VGGSound's sizes, made on the spot.")
    ] = "like-vggsound",
    root: Annotated[Path, typer.Option(help="Data folder.")] = Path("data"),
    workers: Annotated[int, typer.Option(help="Loader processes.", min=0)] = 1,
    batch_size: Annotated[int, typer.Option(help="Samples of a batch.", min=1)] = 16,
    image_size: Annotated[int, typer.Option(help="Side of the pictures.", min=1)] = 352,
    seconds: Annotated[float, typer.Option(help="Length of the sounds.")] = 10.0,
    batches: Annotated[int, typer.Option(help="Batches to time.", min=1)] = 60,
    json: Json = False,
) -> None:
    """Samples per second and worker of the training loader, against a bare decode of the same bytes.

    Example: `avloc bench loader --workers 2`
    """
    from avloc.bench.loader import measure_loader
    from avloc.bench.step import print_result

    print_result(measure_loader(train, root, workers, batch_size, image_size, seconds, batches), json)


@app.command("media")
def bench_media(
    video: Annotated[Path | None, typer.Option(help="A clip of ten seconds; by default one of 720p.")] = None,
    repeats: Annotated[int, typer.Option(help="Timed repetitions; the median is printed.", min=1)] = 5,
    json: Json = False,
) -> None:
    """Time of converting a clip for training against the bare decode of the same bytes, in the same run.

    Example: `avloc bench media --repeats 3`
    """
    from avloc.bench.media import measure_media
    from avloc.bench.step import print_result

    print_result(measure_media(video, repeats), json)


@app.command("metrics")
def bench_metrics(
    maps: Annotated[int, typer.Option(help="Samples.", min=1)] = 500,
    size: Annotated[int, typer.Option(help="Side of a map, pixels.", min=1)] = 224,
    repeats: Annotated[int, typer.Option(help="Timed repetitions; the median is printed.", min=1)] = 3,
    json: Json = False,
) -> None:
    """Time of every metric against a plain NumPy loop of its definition, in the same run.

    Example: `avloc bench metrics --maps 100`
    """
    from avloc.bench.metrics import measure_metrics
    from avloc.bench.step import print_result

    print_result(measure_metrics(maps, size, repeats), json)


@app.command("gradients")
def bench_gradients(
    method: Annotated[Literal["acl", "souple"], typer.Option(help="Whose loss, as the quickstart sets it.")] = "acl",
    batches: Annotated[int, typer.Option(help="Batches of the embedded world.", min=1)] = 4,
    batch_size: Annotated[int, typer.Option(help="Samples of a batch.", min=2)] = 16,
    seed: Annotated[int, typer.Option(help="Of the untrained weights and the order.")] = 0,
    ckpt: Annotated[Path | None, typer.Option(help="A trained ACL-SSL or SOUPLE instead of untrained weights.")] = None,
    root: Annotated[Path, typer.Option(help="Data folder.")] = Path("data"),
    json: Json = False,
) -> None:
    """Each loss term's gradient: its norm, and cosines between float32, bf16 and float64, and two draws of noise.

    Example: `avloc bench gradients --method souple --batches 2`
    """
    from avloc.bench.gradients import measure_gradients
    from avloc.bench.step import print_result

    print_result(measure_gradients(method, batches, batch_size, seed, ckpt, root), json)


@app.command("localize")
def bench_localize(
    method: Annotated[Literal["acl", "souple"], typer.Option(help="Who answers.")] = "souple",
    full_size: Annotated[
        bool, typer.Option(help="The published size with random weights instead of the embedded world's.")
    ] = False,
    seconds: Annotated[float, typer.Option(help="Length of the clip.", min=1)] = 4.0,
    fps: Annotated[float, typer.Option(help="Analysed frames a second.", min=0.1)] = 4.0,
    height: Annotated[int, typer.Option(help="Lines of the clip, which is 16 by 9.", min=16)] = 720,
    steps: Annotated[int, typer.Option(help="Timed repetitions; the median is printed.", min=1)] = 3,
    json: Json = False,
) -> None:
    """Time of `avloc localize` per second of video against the network's own passes, and memory by the clip's length.

    Decoding, drawing and encoding are what the network does not do: of the full size on a CPU a small part, of the
    embedded world's towers nearly all.

    Example: `avloc bench localize --full-size --steps 1`
    """
    from avloc.bench.localize import measure_localize
    from avloc.bench.step import print_result

    print_result(measure_localize(method, full_size, seconds, fps, height, steps), json)


@app.command("gpu")
def bench_gpu(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for gpu.json and gpu.md.")] = Path("gpu"),
    minutes: Annotated[float, typer.Option(help="After which no case is begun any more.", min=0)] = 8.0,
    tiny: Annotated[bool, typer.Option(help="The embedded world's sizes, to try the command on a CPU.")] = False,
    most: Annotated[int, typer.Option(help="Samples of the largest batch.", min=8)] = 256,
    json: Json = False,
) -> None:
    """Each method's step in float32, TF32 and bf16, compiled and recomputed, with growing batches; how far bf16 is from
    float32; how often a step waits for the device; two processes where there are two; the tests marked gpu.

    Needs random weights alone. `python -m avloc.bench gpu` is the same.

    Example: `avloc bench gpu --minutes 8 -o gpu`
    """
    from json import dumps

    from avloc.bench.gpu import measure_gpu, page

    told = measure_gpu(out, minutes, tiny, most)
    print(dumps(told) if json else page(told))
