"""Class-agnostic boxes from any source, and which of them are kept.

A `BoxSource` says where boxes come from and holds no network; `BoxSource.load` gives the detector that is asked. MAVL,
which SeAC used, needs compiled operators of its own: its boxes are computed elsewhere, written with `write_boxes`, and
read by `StoredBoxes`. (mmaaz60/mvits_for_class_agnostic_od, commit ae561b0.)

Boxes are x1, y1, x2, y2 in pixels of the picture; they may reach beyond it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor
from torchvision.ops import nms as torchvision_nms  # type: ignore[import-untyped]

from avloc.backbones.sam import SAM
from avloc.weights import WeightError, load_into, locate, read_state, weights_folder

__all__ = [
    "BoxSource",
    "Convention",
    "Detector",
    "GroundingDinoBoxes",
    "Owlv2Boxes",
    "Proposals",
    "SamPoints",
    "StoredBoxes",
    "TorchvisionBoxes",
    "from_detr",
    "jittered",
    "keep",
    "nms",
    "write_boxes",
]

Convention = Literal["pixel", "continuous"]


@dataclass
class Proposals:
    """What a detector found in one picture.

    Attributes:
        boxes: float32 ``[n, 4]``.
        scores: float32 ``[n]``.
        masks: bool ``[n, H, W]`` where the source draws masks itself.
    """

    boxes: Tensor
    scores: Tensor
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, rows: Tensor) -> Proposals:
        return Proposals(self.boxes[rows], self.scores[rows], None if self.masks is None else self.masks[rows])


Detector = Callable[[Sequence[Tensor], Sequence[str]], list[Proposals]]
"""Pictures uint8 ``[3, H, W]`` on its device and the name of each, to what is in each."""


class BoxSource:
    """Where boxes come from. Its own content is a few strings and numbers."""

    def load(self, device: torch.device | str) -> Detector:
        """A detector on ``device``.

        Raises:
            WeightError: its weights are missing or damaged.
        """
        raise TypeError(f"{type(self).__name__} must define load().")


# ---- which boxes are kept


def nms(boxes: Tensor, scores: Tensor, iou: float = 0.5, convention: Convention = "pixel") -> Tensor:
    """Greedy non-maximum suppression by score; a box survives where its IoU with every better one is at most ``iou``.

    Args:
        boxes: ``[n, 4]``.
        scores: ``[n]``; ties keep their order.
        iou: threshold.
        convention: ``pixel`` is MAVL's, a box includes its last row and column: width = x2 - x1 + 1, and so for
            intersections. ``continuous`` is torchvision's, width = x2 - x1; it differs for small boxes alone.

    Returns:
        int64, kept rows, the best first.
    """
    grown = boxes.double()
    if convention == "pixel":
        grown = grown + torch.tensor([0, 0, 1, 1], device=boxes.device)
    return torchvision_nms(grown, scores.double(), iou)


def keep(found: Proposals, count: int = 50, iou: float = 0.5, convention: Convention = "pixel") -> Proposals:
    """The ``count`` most confident boxes after `nms`; boxes and scores that are not finite are left out first."""
    finite = torch.isfinite(found.boxes).all(1) & torch.isfinite(found.scores)
    found = found.take(finite.nonzero()[:, 0])
    return found.take(nms(found.boxes, found.scores, iou, convention)[:count])


def from_detr(logits: Tensor, boxes: Tensor, size: tuple[int, int]) -> Proposals:
    """What MAVL's evaluation makes of a DETR head for one picture.

    Args:
        logits: ``[n, C]``, the last of which is "no object": confidence = 1 - softmax(no object).
        boxes: ``[n, 4]`` centre x, y, width, height as fractions of the picture.
        size: height and width of the picture.

    Returns:
        Boxes truncated to whole pixels.
    """
    x, y, w, h = boxes.float().unbind(-1)
    corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1)
    scale = torch.tensor([size[1], size[0]] * 2, device=boxes.device)
    return Proposals((corners * scale).trunc(), 1 - logits.float().softmax(-1)[:, -1])


def jittered(
    boxes: Tensor,
    size: tuple[int, int],
    distractors: int = 0,
    jitter: float = 0.05,
    generator: torch.Generator | None = None,
) -> Proposals:
    """True boxes as a mediocre detector would give them: edges moved, and boxes of nothing among them.

    Args:
        boxes: ``[n, 4]``.
        size: height and width of the picture.
        distractors: number of random boxes of a tenth to half of the picture's sides.
        jitter: standard deviation of every edge as a share of the box's side.
        generator: of all randomness, on the CPU.

    Returns:
        True boxes first; scores from 0.5 to 1, of distractors from 0 to 0.7.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    boxes = boxes.float().cpu()
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    moved = boxes + jitter * sides * torch.randn(boxes.shape, generator=generator)
    frame = torch.tensor([size[1], size[0]], dtype=torch.float32)
    extent = (0.1 + 0.4 * uniform(distractors, 2)) * frame
    corner = uniform(distractors, 2) * (frame - extent)
    nothing = torch.cat([corner, corner + extent], dim=1)
    scores = torch.cat([0.5 + 0.5 * uniform(len(boxes)), 0.7 * uniform(distractors)])
    return Proposals(torch.cat([moved, nothing]), scores)


# ---- stored boxes


class StoredBoxes(BoxSource):
    """Boxes that another program computed, such as MAVL's for the text "all objects".

    The file is safetensors, read in place, for P pictures of n_p boxes each:

    ===========  ======================  =======================================================
    tensor       type, shape             content
    ===========  ======================  =======================================================
    boxes        int32 or float32 [n,4]  x1, y1, x2, y2 in pixels, all pictures after each other
    scores       float32 [n]             confidence
    start        int64 [P + 1]           first row of each picture, n at the end
    names        uint8 [bytes]           UTF-8, one name a line: ``<record key>.f<frame>``
    ===========  ======================  =======================================================

    `write_boxes` writes one. A picture that is not in the file is an error; one without boxes has none.

    Args:
        path: of the file.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def load(self, device: torch.device | str) -> Detector:
        path = Path(self.path).expanduser()
        try:
            file = safe_open(path, "pt")
            names = bytes(file.get_tensor("names").numpy()).decode().split("\n")
            start = file.get_tensor("start").tolist()
            n = file.get_slice("boxes").get_shape()
            fits = n == [start[-1], 4] and file.get_slice("scores").get_shape() == n[:1]
        except FileNotFoundError as e:
            raise WeightError(f"{path} is missing. Write it with avloc.backbones.proposals.write_boxes.") from e
        except (SafetensorError, OSError, UnicodeDecodeError, IndexError) as e:
            raise WeightError(f"{path} is no file of stored boxes ({e}). Write it with write_boxes.") from e
        if not fits or len(start) != len(names) + 1 or sorted(start) != start:
            raise WeightError(f"{path}: {len(names)} names, {len(start)} starts and boxes {n} do not agree.")
        place = {name: i for i, name in enumerate(names)}

        def detect(images: Sequence[Tensor], keys: Sequence[str]) -> list[Proposals]:
            found = []
            for key in keys:
                if key not in place:
                    raise KeyError(
                        f"{path} has no boxes of picture {key!r}; it has {names[0]!r}, ... Compute them too."
                    )
                rows = slice(start[place[key]], start[place[key] + 1])
                boxes, scores = (file.get_slice(k)[rows].float().to(device) for k in ("boxes", "scores"))
                found.append(Proposals(boxes, scores))
            return found

        return detect


def write_boxes(path: Path | str, pictures: Iterable[tuple[str, np.ndarray, np.ndarray]]) -> None:
    """Write what `StoredBoxes` reads.

    Args:
        path: ends with ``.safetensors``.
        pictures: name, boxes ``[n, 4]`` and scores ``[n]`` of each; a generator will do.

    Raises:
        ValueError: a name twice or with a line break in it, or shapes that do not agree; names the picture.
    """
    names: dict[str, None] = {}
    boxes, scores, start = [], [], [0]
    for name, box, score in pictures:
        box = np.asarray(box).reshape(-1, 4)
        if name in names or "\n" in name or len(box) != len(score):
            raise ValueError(
                f"Picture {name!r} is there twice, has a line break, or {len(box)} boxes, {len(score)} scores."
            )
        names[name] = None
        boxes.append(box)
        scores.append(np.asarray(score, np.float32))
        start.append(start[-1] + len(box))
    everything = np.concatenate([np.zeros((0, 4), np.int32), *boxes])
    tensors = {
        "boxes": everything.astype(np.int32 if np.issubdtype(everything.dtype, np.integer) else np.float32),
        "scores": np.concatenate([np.zeros(0, np.float32), *scores]),
        "start": np.array(start),
        "names": np.frombuffer("\n".join(names).encode(), np.uint8),
    }
    save_file(tensors, path)


# ---- detectors of other libraries


def of_snapshot(source: str, model: Any, processor: Any, device: torch.device | str) -> tuple[Any, Any]:
    """A detector of `transformers` in eval mode, and what prepares its pictures; nothing is downloaded."""
    folder = snapshot(source)
    return (
        model.from_pretrained(folder, local_files_only=True).eval().to(device),
        processor.from_pretrained(folder, local_files_only=True),
    )


class Owlv2Boxes(BoxSource):
    """OWLv2's objectness head through `transformers`: every patch's box, no text.

    Args:
        source: folder with a snapshot, or ``hf:OWNER/NAME`` on this machine; nothing is downloaded.
    """

    def __init__(self, source: str = "hf:google/owlv2-base-patch16-ensemble") -> None:
        self.source = source

    def load(self, device: torch.device | str) -> Detector:
        from transformers import Owlv2ForObjectDetection, Owlv2ImageProcessor

        model, prepare = of_snapshot(self.source, Owlv2ForObjectDetection, Owlv2ImageProcessor, device)

        @torch.inference_mode()
        def detect(images: Sequence[Tensor], names: Sequence[str]) -> list[Proposals]:
            pixels = prepare(images=list(images), return_tensors="pt").pixel_values.to(device)
            grid, _ = model.image_embedder(pixel_values=pixels)
            patches = grid.flatten(1, 2)
            scores, boxes = model.objectness_predictor(patches).sigmoid(), model.box_predictor(patches, grid)
            # Pictures are padded to a square at the right or bottom: fractions are of the longest side.
            return [
                Proposals(corners(b) * max(image.shape[1:]), s)
                for image, b, s in zip(images, boxes, scores, strict=True)
            ]

        return detect


class GroundingDinoBoxes(BoxSource):
    """Grounding DINO through `transformers`, asked for one phrase; the score is that of its best word.

    Args:
        source: folder with a snapshot, or ``hf:OWNER/NAME`` on this machine; nothing is downloaded.
        text: the phrase, which ends with a dot.
    """

    def __init__(self, source: str = "hf:IDEA-Research/grounding-dino-tiny", text: str = "objects.") -> None:
        self.source, self.text = source, text

    def load(self, device: torch.device | str) -> Detector:
        from transformers import AutoProcessor, GroundingDinoForObjectDetection

        model, prepare = of_snapshot(self.source, GroundingDinoForObjectDetection, AutoProcessor, device)

        @torch.inference_mode()
        def detect(images: Sequence[Tensor], names: Sequence[str]) -> list[Proposals]:
            given = prepare(images=list(images), text=[self.text] * len(images), return_tensors="pt").to(device)
            out = model(**given)
            found = []
            for image, logits, boxes in zip(images, out.logits, out.pred_boxes, strict=True):
                frame = torch.tensor([image.shape[2], image.shape[1]] * 2, device=device)
                found.append(Proposals(corners(boxes) * frame, logits.sigmoid().amax(-1)))
            return found

        return detect


class TorchvisionBoxes(BoxSource):
    """A detector of torchvision, its classes forgotten.

    Args:
        model: name of the builder.
        source: ``file:PATH`` of its weights, or ``random``.
        options: for the builder, such as ``{num_classes: 17, min_size: 64}``; by default everything that it finds is
            kept, up to 300 boxes.
    """

    def __init__(
        self, model: str = "fasterrcnn_resnet50_fpn_v2", source: str = "random", options: dict[str, Any] | None = None
    ) -> None:
        self.model, self.source, self.options = model, source, options or {}

    def load(self, device: torch.device | str) -> Detector:
        from torchvision.models import get_model  # type: ignore[import-untyped]

        settings: dict[str, Any] = {"weights": None, "weights_backbone": None}
        if self.model.startswith(("fasterrcnn", "maskrcnn")):
            settings |= {"box_score_thresh": 0.0, "box_detections_per_img": 300}
        model = get_model(self.model, **settings | self.options)
        file = locate(self.source)
        if file.path is not None:
            load_into(model, read_state(file.path), str(file.path))
        model.eval().to(device)

        @torch.inference_mode()
        def detect(images: Sequence[Tensor], names: Sequence[str]) -> list[Proposals]:
            return [Proposals(o["boxes"], o["scores"]) for o in model([i.to(device) / 255 for i in images])]

        return detect


class SamPoints(BoxSource):
    """SAM's automatic masks: a grid of points, three masks each, of which the good and stable ones are kept.

    As the package's `SamAutomaticMaskGenerator` without crops of the picture. The score is SAM's predicted IoU.

    Args:
        sam: weight source.
        points: per side of the grid.
        quality: least predicted IoU, exclusive.
        stability: least IoU of the masks that cut the logits at +1 and at -1.
        iou: NMS among the masks' boxes.
        chunk: points that are asked together.
    """

    def __init__(
        self,
        sam: str = "sam_vit_h",
        points: int = 32,
        quality: float = 0.88,
        stability: float = 0.95,
        iou: float = 0.7,
        chunk: int = 64,
    ) -> None:
        self.sam, self.points, self.quality, self.stability = sam, points, quality, stability
        self.iou, self.chunk = iou, chunk

    def load(self, device: torch.device | str) -> Detector:
        sam = SAM.from_source(self.sam).to(device)
        at = (torch.arange(self.points, device=device) + 0.5) / self.points
        grid = torch.stack(torch.meshgrid(at, at, indexing="xy"), dim=-1).flatten(0, 1)
        return lambda images, names: [self.find(sam, image.to(device), grid) for image in images]

    @torch.inference_mode()
    def find(self, sam: SAM, image: Tensor, grid: Tensor) -> Proposals:
        """Masks of one picture uint8 ``[3, H, W]``, asked by points ``[P, 2]`` as fractions of it."""
        height, width = image.shape[1:]
        embedding, inner = sam_embedding(sam, image)
        points = sam.to_model_frame(grid * torch.tensor([width, height], device=grid.device), (height, width))
        parts: list[Proposals] = []
        for some in points.split(self.chunk):
            inside = torch.ones(len(some), 1, device=some.device)
            sparse, _ = sam.prompts(points=(some[:, None], inside))
            logits, quality = (x.flatten(0, 1) for x in sam.decode(embedding, sparse, masks=slice(1, None)))
            rows = (quality > self.quality).nonzero()[:, 0]
            cut = sam.upscale(logits[rows, None], inner, (height, width))[:, 0]
            high, low = (cut > 1).flatten(1).sum(1), (cut > -1).flatten(1).sum(1)
            masks = cut > 0
            good = (high / low.clamp(min=1) >= self.stability) & masks.flatten(1).any(1)
            parts.append(Proposals(mask_boxes(masks[good]), quality[rows][good].float(), masks[good]))
        found = Proposals(
            torch.cat([p.boxes for p in parts]),
            torch.cat([p.scores for p in parts]),
            torch.cat([p.masks for p in parts if p.masks is not None]),
        )
        return found.take(nms(found.boxes, found.scores, self.iou, "continuous"))


def sam_embedding(sam: SAM, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """SAM's embedding ``[1, D, g, g]`` of a picture uint8 ``[3, H, W]``, and its height and width in SAM's frame."""
    resized = torch.from_numpy(sam.resize_longest(image.permute(1, 2, 0).cpu().numpy())).to(image.device)
    pixels = sam.prepare(resized.permute(2, 0, 1)[None])
    return sam.encode(pixels), (resized.shape[0], resized.shape[1])


def mask_boxes(masks: Tensor) -> Tensor:
    """Boxes float32 ``[n, 4]`` from first to last pixel of masks ``[n, H, W]``, none empty (the package's reading)."""

    def span(seen: Tensor) -> tuple[Tensor, Tensor]:
        there = seen.to(torch.uint8)
        return there.argmax(1), seen.shape[1] - 1 - there.flip(1).argmax(1)

    (x1, x2), (y1, y2) = span(masks.any(1)), span(masks.any(2))
    return torch.stack([x1, y1, x2, y2], dim=-1).float()


def corners(boxes: Tensor) -> Tensor:
    """Centre and size ``[n, 4]`` to corners."""
    centre, size = boxes.float().split(2, dim=-1)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def snapshot(source: str) -> Path:
    """Folder of a Hugging Face snapshot on this machine; never downloads.

    Raises:
        WeightError: it is not here; says where it is looked for.
    """
    name = source.removeprefix("hf:")
    places = [Path(name).expanduser(), weights_folder() / name.replace("/", "--")]
    if source.startswith("hf:"):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, "config.json")
        places = [*places[1:], *([Path(cached).parent] if isinstance(cached, str) else [])]
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise WeightError(
        f"Detector {source!r} is not on this machine. Put its snapshot (config.json, model.safetensors, ...) at "
        f"{weights_folder() / name.replace('/', '--')}, or download it with `hf download {name}`."
    )


# Checkpoints keep a method's source among the hyper-parameters, and are loaded without unpickling anything else.
torch.serialization.add_safe_globals(
    [StoredBoxes, Owlv2Boxes, GroundingDinoBoxes, TorchvisionBoxes, SamPoints]  # type: ignore[list-item]
)
