"""Box sources against the libraries that they stand on, and suppression against its definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam
from torch import Tensor

from avloc.backbones import proposals as P
from avloc.backbones.sam import PIXEL_MEAN, PIXEL_STD, SAM
from avloc.weights import WeightError
from avloc.world.scenes import render, sample_scenes


def boxes(n: int, seed: int = 0, size: int = 60) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, size, (n, 2), generator=g)
    extent = torch.randint(1, size // 2, (n, 2), generator=g)
    return torch.cat([corner, corner + extent], 1).float(), torch.rand(n, generator=g)


def greedy(box: np.ndarray, score: np.ndarray, threshold: float, extra: int) -> list[int]:
    """The definition, one pair at a time; ``extra`` is 1 where a box includes its last pixels."""
    kept: list[int] = []
    for i in sorted(range(len(box)), key=lambda i: -score[i]):
        good = True
        for k in kept:
            w = min(box[i, 2], box[k, 2]) - max(box[i, 0], box[k, 0]) + extra
            h = min(box[i, 3], box[k, 3]) - max(box[i, 1], box[k, 1]) + extra
            inner = max(0.0, w) * max(0.0, h)
            area = [(b[2] - b[0] + extra) * (b[3] - b[1] + extra) for b in (box[i], box[k])]
            good &= not inner / (area[0] + area[1] - inner) > threshold
        if good:
            kept.append(i)
    return kept


# ---- which boxes are kept


@pytest.mark.parametrize(("convention", "extra"), [("pixel", 1), ("continuous", 0)])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_nms_is_its_definition(convention: P.Convention, extra: int, threshold: float) -> None:
    box, score = boxes(200, size=20)
    got = P.nms(box, score, threshold, convention).tolist()
    assert got == greedy(box.numpy(), score.numpy(), threshold, extra)
    assert 5 < len(got) < 195


def test_conventions_differ_for_small_boxes_and_the_threshold_itself_survives() -> None:
    score = torch.tensor([0.9, 0.8])
    # 2x2 and 2x3 pixels share 4 of 6 (0.667) with the last pixels, 1 of 2 (0.5) without.
    small = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 2]])
    assert P.nms(small, score, 0.5, "pixel").tolist() == [0]
    assert P.nms(small, score, 0.5, "continuous").tolist() == [0, 1]
    # 2 of 4 pixels: exactly 0.5 survives.
    assert P.nms(torch.tensor([[0.0, 0, 1, 0], [0, 0, 3, 0]]), score, 0.5, "pixel").tolist() == [0, 1]


def test_equal_scores_keep_their_order() -> None:
    box = torch.tensor([[0.0, 0, 9, 9]] * 3 + [[30, 30, 40, 40]] * 2)
    assert P.nms(box, torch.full((5,), 0.5)).tolist() == [0, 3]


def test_keep_takes_the_most_confident_and_leaves_out_what_is_not_finite() -> None:
    box = torch.tensor([[10.0 * i, 0, 10.0 * i + 8, 8] for i in range(6)])
    box[4, 2] = torch.nan
    score = torch.tensor([0.1, 0.5, torch.inf, 0.3, 0.9, 0.2])
    masks = torch.arange(6)[:, None, None].expand(6, 2, 2)
    got = P.keep(P.Proposals(box, score, masks), count=3)
    assert got.scores.tolist() == pytest.approx([0.5, 0.3, 0.2])
    assert got.boxes[:, 0].tolist() == [10, 30, 50]
    assert got.masks is not None
    assert got.masks[:, 0, 0].tolist() == [1, 3, 5]
    assert len(P.keep(P.Proposals(torch.zeros(0, 4), torch.zeros(0)))) == 0


def test_detr_head_by_hand() -> None:
    logits = torch.tensor([[0.0, np.log(3.0)], [np.log(9.0), 0.0]])  # no object: 0.75 and 0.1
    found = P.from_detr(logits, torch.tensor([[0.5, 0.5, 0.4, 0.2], [0.1, 0.9, 0.3, 0.3]]), (101, 203))
    torch.testing.assert_close(found.scores, torch.tensor([0.25, 0.9]))
    # x: (0.5 -+ 0.2) * 203 = 60.9, 142.1; y: (0.5 -+ 0.1) * 101 = 40.4, 60.6. Then truncated, towards zero.
    assert found.boxes.tolist() == [[60, 40, 142, 60], [-10, 75, 50, 106]]


def test_jittered_boxes() -> None:
    true, _ = boxes(4)
    same = P.jittered(true, (90, 120), jitter=0.0)
    assert torch.equal(same.boxes, true)
    g = torch.Generator().manual_seed(0)
    found = P.jittered(true, (90, 120), distractors=200, jitter=0.05, generator=g)
    sides = (true[:, 2:] - true[:, :2]).repeat(1, 2)
    moved = ((found.boxes[:4] - true) / sides).abs()
    assert 0 < moved.max() < 0.25
    nothing = found.boxes[4:]
    assert len(nothing) == 200
    assert nothing.min() >= 0
    assert nothing[:, 2].max() <= 120
    assert nothing[:, 3].max() <= 90
    assert found.scores[:4].min() >= 0.5
    assert found.scores[4:].max() <= 0.7


# ---- stored boxes


def test_stored_boxes(tmp_path: Path) -> None:
    path = tmp_path / "boxes.safetensors"
    first, second = np.array([[1, 2, 3, 4], [5, 6, 70, 80]]), np.array([[-3, 0, 9, 9]])
    empty = np.zeros((0, 4), int)
    P.write_boxes(path, [("a__x.f0", first, [0.5, 0.25]), ("a__x.f1", empty, []), ("b__ü.f0", second, [0.75])])
    detect = P.StoredBoxes(str(path)).load("cpu")
    picture = torch.zeros(3, 9, 9, dtype=torch.uint8)
    found = detect([picture] * 3, ["b__ü.f0", "a__x.f1", "a__x.f0"])
    assert [f.boxes.tolist() for f in found] == [second.tolist(), [], first.tolist()]
    assert [f.scores.tolist() for f in found] == [[0.75], [], [0.5, 0.25]]
    with pytest.raises(KeyError, match=r"no boxes of picture 'c\.f0'"):
        detect([picture], ["c.f0"])


def test_bad_files_of_stored_boxes(tmp_path: Path) -> None:
    def load(name: str) -> None:
        P.StoredBoxes(str(tmp_path / name)).load("cpu")

    with pytest.raises(WeightError, match="missing"):
        load("none.safetensors")
    (tmp_path / "text.safetensors").write_text("boxes")
    with pytest.raises(WeightError, match="no file of stored boxes"):
        load("text.safetensors")
    parts: dict[str, Any] = {
        "boxes": np.zeros((3, 4), np.int32),
        "scores": np.zeros(3, np.float32),
        "start": np.array([0, 2]),
        "names": np.frombuffer(b"a", np.uint8),
    }
    save_file(parts, tmp_path / "short.safetensors")
    with pytest.raises(WeightError, match="do not agree"):
        load("short.safetensors")
    for bad in (
        [("a", np.zeros((1, 4)), [1.0])] * 2,
        [("a\nb", np.zeros((1, 4)), [1.0])],
        [("a", np.zeros((2, 4)), [1.0])],
    ):
        with pytest.raises(ValueError, match="Picture 'a"):
            P.write_boxes(tmp_path / "bad.safetensors", bad)


# ---- other libraries


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (3, height, width), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


@torch.no_grad()
def test_owlv2_is_the_librarys_objectness(tmp_path: Path) -> None:
    from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor

    torch.manual_seed(0)
    little = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Owlv2Config(
        text_config=little | {"vocab_size": 20, "max_position_embeddings": 4},
        vision_config=little | {"image_size": 64, "patch_size": 16},
        projection_dim=32,
    )
    model = Owlv2ForObjectDetection(config).eval()
    model.save_pretrained(tmp_path)
    prepare = Owlv2ImageProcessor(size={"height": 64, "width": 64})
    prepare.save_pretrained(tmp_path)
    images = [picture(40, 60), picture(90, 50, 1)]
    found = P.Owlv2Boxes(str(tmp_path)).load("cpu")(images, ["", ""])
    pixels = prepare(images=images, return_tensors="pt").pixel_values
    out = model(input_ids=torch.tensor([[1, 2, 3, 0]] * 2), pixel_values=pixels)
    corners = prepare.post_process_object_detection(out, threshold=-1, target_sizes=[(40, 60), (90, 50)])
    for b, f in enumerate(found):
        assert len(f) == 16
        torch.testing.assert_close(f.scores, out.objectness_logits[b].reshape(-1).sigmoid())
        torch.testing.assert_close(f.boxes, corners[b]["boxes"], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_grounding_dino_is_the_librarys(tmp_path: Path) -> None:
    from transformers import (
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "objects"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokens = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    swin = SwinConfig(
        image_size=64, window_size=2, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    text = {
        "vocab_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    config = GroundingDinoConfig(
        backbone_config=swin,
        text_config={"model_type": "bert", **text},
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=5,
        max_text_len=8,
    )
    model = GroundingDinoForObjectDetection(config).eval()
    model.save_pretrained(tmp_path)
    prepare = GroundingDinoProcessor(GroundingDinoImageProcessor(size={"height": 64, "width": 64}), tokens)
    prepare.save_pretrained(tmp_path)
    images = [picture(40, 60), picture(90, 50, 1)]
    found = P.GroundingDinoBoxes(str(tmp_path)).load("cpu")(images, ["", ""])
    given = prepare(images=images, text=["objects."] * 2, return_tensors="pt")
    want = prepare.post_process_grounded_object_detection(
        model(**given), given.input_ids, threshold=-1, text_threshold=1, target_sizes=[(40, 60), (90, 50)]
    )
    for f, w in zip(found, want, strict=True):
        assert len(f) == 5
        torch.testing.assert_close(f.scores, w["scores"], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(f.boxes, w["boxes"], atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_torchvision_detector_from_a_file(tmp_path: Path) -> None:
    from torchvision.models import get_model

    torch.manual_seed(0)
    options = {"num_classes": 4, "min_size": 64, "max_size": 64}
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    model = get_model(
        name, weights=None, weights_backbone=None, box_score_thresh=0.0, box_detections_per_img=300, **options
    )
    torch.save(model.state_dict(), tmp_path / "detector.pt")
    images = [picture(50, 64), picture(64, 64, 1)]
    found = P.TorchvisionBoxes(name, f"file:{tmp_path / 'detector.pt'}", options).load("cpu")(images, ["", ""])
    want = model.eval()([i / 255 for i in images])
    for f, w in zip(found, want, strict=True):
        assert len(f) > 0
        assert torch.equal(f.boxes, w["boxes"])
        assert torch.equal(f.scores, w["scores"])
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(WeightError, match="does not fit"):
        P.TorchvisionBoxes(name, f"file:{tmp_path / 'other.pt'}", options).load("cpu")


def test_sams_automatic_masks_are_the_packages() -> None:
    sam = SAM.from_source("world:sam")
    image = render(sample_scenes(np.random.default_rng(0), 1), 64)[0][0, :, :48]
    found = P.SamPoints("world:sam", points=6, quality=0.4, stability=0.6, chunk=7).load("cpu")([image], [""])[0]
    package = Sam(sam.image_encoder, sam.prompt_encoder, sam.mask_decoder, list(PIXEL_MEAN), list(PIXEL_STD))
    generator = SamAutomaticMaskGenerator(
        package.eval(), points_per_side=6, pred_iou_thresh=0.4, stability_score_thresh=0.6
    )
    want = generator.generate(image.permute(1, 2, 0).numpy())
    want.sort(key=lambda m: -m["predicted_iou"])
    assert len(found) == len(want) > 2
    assert found.masks is not None
    for i, mask in enumerate(want):
        assert (found.masks[i].numpy() != mask["segmentation"]).sum() <= 2  # logits at zero
        assert found.scores[i].item() == pytest.approx(mask["predicted_iou"], abs=1e-4)


def test_a_detector_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVLOC_WEIGHTS", str(tmp_path))
    for source in (P.Owlv2Boxes("hf:nobody/nothing"), P.GroundingDinoBoxes(str(tmp_path / "none"))):
        with pytest.raises(WeightError, match="is not on this machine"):
            source.load("cpu")
    with pytest.raises(TypeError, match="must define load"):
        P.BoxSource().load("cpu")
