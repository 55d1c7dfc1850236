"""`avloc localize`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from avloc.errors import UsageError
from avloc.names import complete_experiment, complete_run

__all__ = ["localize"]


def localize(
    clips: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[CLIP]...",
            help="Videos with sound, or folders of them. A name that begins with - goes behind -- or as ./-NAME.",
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Folder for the overlay video, the strip of pictures and regions.json; of several clips, a folder "
            "each in it.",
        ),
    ] = Path("localized"),
    image: Annotated[Path | None, typer.Option(help="A picture instead of a video.")] = None,
    audio: Annotated[Path | None, typer.Option(help="The sound that goes with the picture.")] = None,
    ckpt: Annotated[
        Path | None,
        typer.Option(
            help="A checkpoint, or the folder of a run (its best one); by default the newest under runs/.",
            autocompletion=complete_run,
        ),
    ] = None,
    experiment: Annotated[
        str | None,
        typer.Option(
            "--experiment",
            "--method",
            help="A YAML or its name: a method without training, or the settings of --ckpt, of which the newest run "
            "counts where it is left out.",
            autocompletion=complete_experiment,
        ),
    ] = None,
    get: Annotated[
        bool, typer.Option("--get", help="Fetch what --experiment misses of weight files first, as `avloc weights`.")
    ] = False,
    fps: Annotated[float, typer.Option(help="Analysed frames a second; heat between them is interpolated.")] = 4.0,
    window: Annotated[
        float | None,
        typer.Option(
            help="Seconds of sound heard at a moment; by default a fifth of the clip, at least 1 and at most what the "
            "method hears at once.",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="A region is where the heat is at least this; by default the run's universal threshold, else 0.5.",
            show_default=False,
        ),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Opacity of the overlay where the heat is 1.")] = 0.6,
    maps: Annotated[Literal["npz"] | None, typer.Option(help="Save the heat maps too, as maps.npz.")] = None,
    phrases: Annotated[
        Path | None,
        typer.Option(
            help="A file with one phrase a line, of which the nearest to the sound are told (ACL-SSL and SOUPLE); by "
            "default class names: the embedded world's for a method on its weights, else VGG-SS's. A method that asks "
            "for classes asks for them."
        ),
    ] = None,
) -> None:
    """Show where the sound of a video, or of a picture with a sound, comes from, and when.

    Example: `avloc localize clip.mp4 -o out`
    """
    clips = clips or []
    if bool(clips) == (image is not None) or (image is None) != (audio is None):
        raise UsageError("Name either a video, or --image and --audio together.")
    from avloc.data.media import MediaError
    from avloc.localize.models import choose, name_classes, toy_warning
    from avloc.localize.reading import clips_in
    from avloc.localize.run import destinations, localize_still, localize_video
    from avloc.methods.acl.inversion import default_phrases, read_phrases

    if get:
        from avloc.experiment.weights import get as fetch
        from avloc.experiment.weights import sources_of
        from avloc.names import find_config

        if experiment is None:
            raise UsageError("--get fetches what an experiment needs: name it with --experiment.")
        fetch(sources_of(find_config(experiment)))
    chosen = choose(experiment, ckpt)
    model = chosen.model
    known = read_phrases(phrases) if phrases else default_phrases(model)
    name_classes(model, known)
    limit = chosen.threshold if threshold is None else threshold
    print(f"method: {chosen.told}")
    print(f"threshold: {threshold:g}, as asked" if threshold is not None else f"threshold: {chosen.threshold}")
    if warning := toy_warning(model):
        print(f"warning: {warning}", file=sys.stderr)
    options: dict[str, Any] = {"threshold": limit, "alpha": alpha, "phrases": known, "maps": maps}
    if image is not None:
        assert audio is not None
        print(summary(str(image), localize_still(model, image, audio, out, **options), out))
        return
    found = clips_in(clips)
    single = len(found) == 1 and not clips[0].is_dir()
    failed = []
    for clip, place in zip(found, [out] if single else destinations(found, out), strict=True):
        try:
            result = localize_video(model, clip, place, fps=fps, window_s=window, **options)
        except MediaError as e:
            if single:
                raise
            failed.append(clip)
            print(f"avloc localize: {e}", file=sys.stderr)
        else:
            print(summary(str(clip), result, place))
    if failed:
        raise MediaError(f"{len(failed)} of {len(found)} clips gave no answer, as told above; the others are in {out}.")


def summary(name: str, result: dict[str, Any], out: Path) -> str:
    """One line of what was found and where it was written."""
    times = result["times"]
    sounding = sum(bool(entry["regions"]) for entry in times)
    what = f"something sounds in {sounding} of {len(times)} moments" if sounding else "nothing sounds here"
    return f"{name}: {what}; written to {out}"
