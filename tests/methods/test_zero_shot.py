"""Zero-shot mixtures against a loop over one class and one picture at a time through transformers' CLIPSeg."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import Tensor
from transformers import CLIPSegForImageSegmentation

from avloc.backbones.clipseg import CLIP_MEAN, CLIP_STD, CLIPSeg
from avloc.data.indexed import EvalSet
from avloc.data.items import collate
from avloc.data.module import AVDataModule
from avloc.evaluation.measures import Scored
from avloc.methods.acl import ACL
from avloc.methods.base import CheckpointError, Localizer
from avloc.methods.baselines.classes import classes_of, read_classes
from avloc.methods.baselines.zero_shot import ZeroShotMixture
from avloc.methods.souple import SOUPLE
from avloc.types import AVBatch, Localization
from avloc.world import write_world
from tests.methods.tiny import SIDE, tiny_batch, tiny_clipseg, tiny_files

NAMES = ["bell", "drum", "flute", "dog", "cat"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Tiny towers whose masks differ from text to text."""
    folder = tmp_path_factory.mktemp("towers")
    arguments = tiny_files(folder)
    lively_clipseg().save_world(folder / "clipseg.safetensors")
    return arguments


def lively_clipseg() -> CLIPSeg:
    grounder = tiny_clipseg(words=NAMES)
    with torch.no_grad():
        for weight in grounder.clip.text_model.encoder.parameters():
            weight.mul_(10 if weight.ndim == 2 else 1)
        grounder.decoder.transposed_convolution[4].weight.mul_(5)
    return grounder


@pytest.fixture
def acl(files: dict[str, Any]) -> ACL:
    torch.manual_seed(1)
    return ACL(**files, template="an image of {}", masker=(2.0, -1.0)).eval()


@pytest.fixture
def souple(files: dict[str, Any]) -> SOUPLE:
    torch.manual_seed(1)
    return SOUPLE(**files, masker=(2.0, -1.0)).eval()


def of_classes(batch: AVBatch, *classes: list[int]) -> AVBatch:
    return replace(
        batch, class_id=torch.tensor(classes), label=[[NAMES[c] if c >= 0 else "" for c in r] for r in classes]
    )


def transformers_model(grounder: CLIPSeg) -> CLIPSegForImageSegmentation:
    model = CLIPSegForImageSegmentation(grounder.config).eval()
    missing, unexpected = model.load_state_dict(grounder.state_dict(), strict=False)
    assert not unexpected
    assert all("position_ids" in k for k in missing)
    return model


def slowly(method: ACL, image: Tensor, A: Tensor, words: str) -> tuple[Tensor, Tensor]:
    """Cosine of each class and its mask, of one picture uint8 ``[3, S, S]`` and its sound ``[D]``."""
    grounder, threshold = method.network.av_grounder, (method.network.masker_i.b / method.network.masker_i.w).item()
    model = transformers_model(grounder)
    assert grounder.tokenizer is not None
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (CLIP_MEAN, CLIP_STD))
    pixels = ((image.float() / 255 - mean) / std)[None]
    cosines, masks = [], []
    with torch.no_grad():
        for name in NAMES:
            ids = torch.tensor([grounder.tokenizer.encode(words.replace("{}", name))])
            logits = model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits.view(
                SIDE, SIDE
            )
            mask = 1 / (1 + torch.exp(-(logits + threshold)))
            v = model.clip.visual_projection(model.clip.vision_model(pixels * mask).pooler_output)[0]
            cosines.append(float(v @ A / (v.norm() * A.norm())))
            masks.append(mask)
    return torch.tensor(cosines), torch.stack(masks)


def heard(method: ACL, batch: AVBatch) -> Tensor:
    with torch.no_grad():
        return torch.cat(
            [
                method.network.answer(
                    method.network.see(normalised(batch.image[i : i + 1])), method.network.hear(x[None])
                )
                for i, x in enumerate(batch.audio)
            ]
        )


def normalised(image: Tensor) -> Tensor:
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (CLIP_MEAN, CLIP_STD))
    return (image.float() / 255 - mean) / std


@pytest.mark.parametrize(("kind", "words"), [("acl", "an image of {}"), ("souple", "A photo of a {}")])
@pytest.mark.parametrize("chunk", [1, 6, 64])
def test_the_k_most_similar_masks_are_the_answer(
    kind: str, words: str, chunk: int, request: pytest.FixtureRequest
) -> None:
    method, batch = request.getfixturevalue(kind), tiny_batch(3)
    A = heard(method, batch)
    model = ZeroShotMixture(method=method, classes=NAMES, chunk=chunk, heatmap_size=SIDE).eval()
    answer = model.localize(of_classes(batch, [0, 1], [2, 3], [4, 0]))
    assert answer.label is not None
    for i in range(3):
        cosines, masks = slowly(method, batch.image[i], A[i], words)
        assert cosines.sort().values.diff().min() > 2e-6  # else the order would be a matter of rounding
        best = cosines.argsort(descending=True)[:2]
        assert answer.label[i].tolist() == best.tolist()
        torch.testing.assert_close(answer.confidence[i], cosines[best], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(answer.heatmap[i], masks[best], atol=1e-4, rtol=1e-4)


def test_one_pass_over_the_pictures_and_each_text_once(acl: ACL, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, model = tiny_batch(2), ZeroShotMixture(method=acl, classes=NAMES, chunk=4)
    grounder = acl.network.av_grounder
    clean: list[int] = []
    read: list[int] = []
    masked: list[int] = []
    encode_image, encode_text = grounder.encode_image, grounder.encode_text

    def seeing(pixels: Tensor, **what: bool) -> Any:
        (clean if what.get("reduced") else masked).append(len(pixels))
        return encode_image(pixels, **what)

    def reading(ids: Tensor) -> Tensor:
        read.append(len(ids))
        return encode_text(ids)

    monkeypatch.setattr(grounder, "encode_image", seeing)
    monkeypatch.setattr(grounder, "encode_text", reading)
    model.localize(batch)
    model.localize(batch)
    assert clean == [2, 2]
    assert masked == [4, 4, 2] * 2  # 2 pictures x 5 classes, 4 at a time
    assert read == [5]


def test_as_many_sources_as_the_sample_has(acl: ACL) -> None:
    batch = of_classes(tiny_batch(3), [0, 1, 2], [3, -1, -1], [-1, -1, -1])
    one = ZeroShotMixture(method=acl, classes=NAMES, k=1).localize(batch)
    answer = ZeroShotMixture(method=acl, classes=NAMES).localize(batch)
    assert answer.heatmap.shape == (3, 3, 224, 224)
    assert answer.label is not None
    assert ((answer.label >= 0).sum(1) == torch.tensor([3, 1, 2])).all()  # 2 where the sample does not tell
    assert (answer.heatmap[1, 1:] == 0).all()
    assert (answer.heatmap[0].amax((-1, -2)) > 0).all()
    assert one.label is not None
    torch.testing.assert_close(one.label[:, 0], answer.label[:, 0])
    assert ZeroShotMixture(method=acl, classes=NAMES).localize(tiny_batch(1)).heatmap.shape[1] == 2
    # More than there are classes: nothing is left for the rest.
    few = ZeroShotMixture(method=acl, classes=NAMES[:2], k=3).localize(tiny_batch(1))
    assert few.label is not None
    assert few.label[0, 2] == -1
    assert few.confidence[0, 2] == -1
    assert (few.heatmap[0, 2] == 0).all()


def test_synonyms_of_a_class_that_was_found_are_left_out(acl: ACL) -> None:
    text = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 2.0], [-1.0, 0.0]])  # the first two say the same
    cosine = torch.tensor([[0.5, 0.6, 0.3, 0.1], [0.1, 0.2, 0.3, 0.4]])
    two = torch.tensor([2, 2])
    model = ZeroShotMixture(method=acl, classes=NAMES)
    assert model.choose(cosine, text, two)[0].tolist() == [[1, 0], [3, 2]]
    model.synonyms = 0.95
    places, values = model.choose(cosine, text, two)
    assert places.tolist() == [[1, 2], [3, 2]]
    assert torch.equal(values, torch.tensor([[0.6, 0.3], [0.4, 0.3]]))
    model.synonyms = -1.0  # everything is the same
    assert model.choose(cosine, text, two)[0].tolist() == [[1, -1], [3, -1]]


def test_a_squashed_row_gets_maps_of_the_rows_proportions(acl: ACL) -> None:
    batch = replace(of_classes(tiny_batch(2), [0, 1], [2, 3]), truth=torch.zeros(2, 2, 16, 32))
    model = ZeroShotMixture(method=acl, classes=NAMES, heatmap_size=SIDE)
    assert model.input_spec.duet == "squash"
    assert model.localize(batch).heatmap.shape == (2, 2, SIDE, 2 * SIDE)
    M = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    drawn = model.draw(M, 1, batch)
    threshold = (acl.network.masker_i.b / acl.network.masker_i.w).item()
    for b in range(2):
        for n in range(3):
            plane = F.interpolate(M[b, n][None, None], (SIDE, 2 * SIDE), mode="bicubic", align_corners=False)
            torch.testing.assert_close(drawn[b, n], 1 / (1 + torch.exp(-(plane[0, 0] + threshold))))


@pytest.mark.parametrize("kind", ["acl", "souple"])
def test_tiles_are_seen_one_by_one_and_the_best_counts(kind: str, request: pytest.FixtureRequest) -> None:
    method, left, right = (
        request.getfixturevalue(kind),
        tiny_batch(2),
        replace(tiny_batch(2, 1), audio=tiny_batch(2).audio),
    )
    model = ZeroShotMixture(method=method, classes=NAMES, geometry="tiles", heatmap_size=SIDE)
    assert model.input_spec.duet == "wide"
    row = replace(left, image=torch.cat([left.image, right.image], dim=-1), truth=torch.zeros(2, 2, 16, 32))
    answer = model.localize(row)
    assert answer.label is not None
    words = model.wording or "an image of {}"
    for i in range(2):
        sides = [slowly(method, b.image[i], heard(method, b)[i], words) for b in (left, right)]
        cosines = torch.maximum(sides[0][0], sides[1][0])
        best = cosines.argsort(descending=True)[:2]
        assert answer.label[i].tolist() == best.tolist()
        torch.testing.assert_close(answer.confidence[i], cosines[best], atol=1e-5, rtol=1e-4)
        want = torch.cat([masks[best] for _, masks in sides], dim=-1)
        torch.testing.assert_close(answer.heatmap[i], want, atol=1e-4, rtol=1e-4)


def test_an_ensemble_that_averages_masks_is_asked_too(files: dict[str, Any]) -> None:
    method = SOUPLE(**files, variant="ensemble", ensemble="logits").eval()
    answer = ZeroShotMixture(method=method, classes=NAMES).localize(tiny_batch(2))
    assert answer.heatmap.shape == (2, 2, 224, 224)
    assert answer.confidence.isfinite().all()


def test_sources_are_matched_by_their_class(acl: ACL) -> None:
    """A class that was not found has an empty map, wherever the others stand."""
    batch = replace(of_classes(tiny_batch(1), [0, 1]), truth=torch.ones(1, 2, SIDE, SIDE))
    model = ZeroShotMixture(method=acl, classes=NAMES, heatmap_size=SIDE)
    answer = model.localize(batch)
    assert answer.label is not None
    first, second = answer.label[0].tolist()
    other = next(c for c in range(5) if c not in (first, second))
    maps = Scored(answer, of_classes(batch, [other, first])).sources
    assert (maps[0, 0] == 0).all()
    torch.testing.assert_close(maps[0, 1], answer.heatmap[0, 0])


def saved(method: Localizer, path: Path) -> Path:
    state: dict[str, Any] = {"state_dict": method.state_dict(), "hyper_parameters": dict(method.hparams)}
    state["pytorch-lightning_version"] = "2.5.0"
    method.on_save_checkpoint(state)
    torch.save(state, path)
    return path


@pytest.mark.parametrize("kind", ["acl", "souple"])
def test_the_method_comes_from_its_checkpoint(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    method, batch = request.getfixturevalue(kind), tiny_batch(2)
    path = saved(method, tmp_path / "best.ckpt")
    want = ZeroShotMixture(method=method, classes=NAMES).localize(batch)
    model = ZeroShotMixture(str(path), classes=NAMES)
    got = model.localize(batch)
    torch.testing.assert_close(got.heatmap, want.heatmap)
    torch.testing.assert_close(got.confidence, want.confidence)
    assert not model.trainable()
    assert type(model.method) is type(method)


def test_what_cannot_be_asked_is_told(acl: ACL, tmp_path: Path) -> None:
    for checkpoint, method in ((None, None), ("a", acl)):
        with pytest.raises(ValueError, match=r"give model.checkpoint or model.method"):
            ZeroShotMixture(checkpoint, method)
    with pytest.raises(CheckpointError, match=r"no checkpoint .*none.ckpt. Train an ACL or SOUPLE first"):
        ZeroShotMixture(str(tmp_path / "none.ckpt"))
    with pytest.raises(ValueError, match=r"must hold {} once"):
        ZeroShotMixture(method=acl, wording="a photo")
    with pytest.raises(ValueError, match="k 0"):
        ZeroShotMixture(method=acl, k=0)
    with pytest.raises(ValueError, match="must be told which classes to ask for"):
        ZeroShotMixture(method=acl).localize(tiny_batch(1))
    other = of_classes(tiny_batch(1), [1, 0])
    with pytest.raises(ValueError, match="numbers 'drum' as class 1, the list of classes as 0"):
        ZeroShotMixture(method=acl, classes=["drum", "bell"]).localize(other)


class Deaf(Localizer):
    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"], logger=False)

    def localize(self, batch: AVBatch) -> Localization:
        raise NotImplementedError


def test_a_checkpoint_of_another_method_is_refused(tmp_path: Path) -> None:
    path = saved(Deaf(), tmp_path / "deaf.ckpt")
    with pytest.raises(CheckpointError, match="is of Deaf; a mixture is asked of an ACL or a SOUPLE"):
        ZeroShotMixture(str(path))


def test_lists_of_classes(tmp_path: Path) -> None:
    listed = tmp_path / "names.txt"
    listed.write_text("church_bell\n\nsnare drum\n")
    assert read_classes(str(listed)).names == ("church bell", "snare drum")
    assert read_classes(str(listed)).numbers == (0, 1)
    space = read_classes("coco_vpo22")  # the background is 0
    assert (space.names[0], space.numbers[0], len(space.names)) == ("airplane", 1, 21)
    with pytest.raises(ValueError, match="neither a label space"):
        read_classes("world17")
    with pytest.raises(ValueError, match=r"has 'a-b' twice \(as 'a b'\)"):
        read_classes(["a b", "a-b"])
    with pytest.raises(ValueError, match="is an empty list"):
        read_classes([])


def test_a_set_s_own_classes(tmp_path: Path) -> None:
    def target(number: int, name: str) -> SimpleNamespace:
        return SimpleNamespace(class_id=number, class_name=name)

    records = [[target(7, "snare_drum"), target(2, "bell")], [target(2, "bell")], [target(-1, "")]]
    data: Any = SimpleNamespace(records=[SimpleNamespace(targets=t) for t in records])
    found = classes_of(data)
    assert found is not None
    assert (found.names, found.numbers) == (("bell", "snare drum"), (2, 7))
    data.records = data.records[2:]
    assert classes_of(data) is None


@pytest.mark.filterwarnings("ignore")
def test_a_tested_set_names_the_candidates(acl: ACL, tmp_path: Path) -> None:
    """Through trainer and data module, and on the mixtures of the world."""
    write_world(tmp_path / "world", "mixture", scenes=4)
    data = AVDataModule(test=["world:mixture"], root=str(tmp_path), eval_batch_size=2, num_workers=0)
    model = ZeroShotMixture(method=acl, heatmap_size=SIDE)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    answers: list[Localization] = Trainer(accelerator="cpu", **quiet).predict(model, data)  # type: ignore[assignment]
    own = classes_of(data.test_sets[0])
    assert own is not None
    assert own.names == model.classes().names
    listed = ZeroShotMixture(method=acl, classes="world16", heatmap_size=SIDE)
    everything = EvalSet(tmp_path / "world" / "world-mixture.json", model.input_spec, truth_size=224)
    batch = collate([everything[i] for i in range(2)])
    label = listed.localize(batch).label
    assert label is not None
    assert set(label.flatten().tolist()) <= set(range(16))
    assert answers[0].label is not None
    assert set(answers[0].label.flatten().tolist()) <= set(own.numbers)
