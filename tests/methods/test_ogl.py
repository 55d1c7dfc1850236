"""Object-guided localisation against the published evaluators' own numbers and arithmetic by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from avloc.backbones.resnet import ObjectResNet
from avloc.evaluation.evaluator import Evaluator
from avloc.methods.base import Localizer
from avloc.methods.baselines.ogl import ObjectGuide, guided, object_map
from avloc.metrics.ciou import ciou
from avloc.metrics.maps import minmax
from avloc.metrics.thresholds import area_threshold
from avloc.types import AVBatch, InputSpec, Localization
from avloc.weights import KNOWN, WeightError
from tests.evaluation.test_evaluator import Learner, ToyData, ToySet, trainer
from tests.golden.case import Case, golden_folder

TINY = {"channels": [8, 16, 32, 64], "stem_width": 8, "num_classes": 16}


def answer(heatmap: Tensor, **more: Tensor) -> Localization:
    return Localization(heatmap, torch.full(heatmap.shape[:2], 0.7), **more)


def test_the_published_evaluator_scores_the_mixed_maps_alike() -> None:
    case = Case(golden_folder() / "metric_ciou_adaptive" / "native_resolution")
    low, obj, truth = (case.inputs[k] for k in ("low", "obj", "gt"))
    mixed = guided(answer(low[:, None]), obj, (224, 224), ObjectGuide("random", alpha=case.config["alpha"])).heatmap
    maps, truth = minmax(mixed[:, 0]), truth.float()
    found = ciou(maps, truth, area_threshold(maps, truth), ">")[:, 0]
    expected = case.expected["ssl_ogl.ciou_adap"]
    torch.testing.assert_close(found, expected, atol=case.spec["tolerance"]["atol"], rtol=0)


def test_alpha_is_the_weight_of_the_method_s_own_map() -> None:
    own = torch.tensor([[[[0.2, 0.4], [0.6, 0.2]]]])
    thing = torch.tensor([[[5.0, 1.0], [1.0, 1.0]]])
    # min-max: own (0, .5, 1, 0), objects (1, 0, 0, 0); 0.4 own + 0.6 objects = (.6, .2, .4, 0); min-max again by 0.6
    out = guided(answer(own), thing, (2, 2), ObjectGuide("random", alpha=0.4))
    torch.testing.assert_close(out.heatmap[0, 0], torch.tensor([[1.0, 1 / 3], [2 / 3, 0.0]]))
    assert out.confidence.item() == pytest.approx(0.7)
    # SLAVC: 0.9 own + 0.1 objects / 2.5
    out = guided(answer(own), thing, (2, 2), ObjectGuide("random", alpha=0.9, reading="slavc"))
    torch.testing.assert_close(out.heatmap[0, 0], torch.tensor([[0.38, 0.40], [0.58, 0.22]]))


def test_maps_are_brought_to_the_grid_with_their_corners_in_place() -> None:
    own = torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]])
    out = guided(answer(own), torch.ones(1, 7, 7), (3, 5), ObjectGuide("random", alpha=1.0)).heatmap[0, 0]
    y, x = np.meshgrid(np.linspace(0, 1, 3), np.linspace(0, 1, 5), indexing="ij")
    np.testing.assert_allclose(out, x * (1 - y) + y * (1 - x), atol=1e-6)


def test_sources_that_were_not_found_stay_empty_and_classes_make_room() -> None:
    own = torch.zeros(1, 2, 4, 4)
    own[0, 0, 0, 0] = 1
    given = answer(own, label=torch.tensor([[3, -1]]), semantic=torch.zeros(1, 4, 4, dtype=torch.long))
    out = guided(given, torch.rand(1, 7, 7), (4, 4), ObjectGuide("random"))
    assert out.heatmap[0, 1].eq(0).all()
    assert out.heatmap[0, 0].gt(0).sum() > 1
    assert out.semantic is None
    assert out.label is not None


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_alpha_out_of_range_is_named(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"ogl\.alpha"):
        ObjectGuide(alpha=alpha)


def batch_of(image: Tensor, size: Tensor | None = None) -> AVBatch:
    n = len(image)
    return AVBatch([str(i) for i in range(n)], image, torch.zeros(n, 8), torch.arange(n), size=size)


def test_object_map_is_the_channel_mean_of_timm_s_last_features(tmp_path: Path) -> None:
    torch.manual_seed(3)
    reference = timm.create_model("resnet18", num_classes=1000).eval()
    torch.save(reference.state_dict(), tmp_path / KNOWN["resnet18"].file)
    network = ObjectResNet.from_source(f"file:{tmp_path / KNOWN['resnet18'].file}")
    image = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    found = object_map(network, batch_of(image))
    pixels = (image.numpy() / 255 - np.array([0.485, 0.456, 0.406]).reshape(3, 1, 1)) / np.array(
        [0.229, 0.224, 0.225]
    ).reshape(3, 1, 1)
    with torch.no_grad():
        features = reference.forward_features(torch.from_numpy(pixels).float())
    assert found.shape == (2, 7, 7)
    torch.testing.assert_close(found, features.abs().mean(1), rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in network.parameters())
    wide = object_map(network, batch_of(torch.cat([image, image.flip(-1)], -1)))
    assert wide.shape == (2, 7, 14)


def test_padding_is_not_looked_at(tmp_path: Path) -> None:
    ObjectResNet(TINY).save_world(tmp_path / "r.safetensors")
    network = ObjectResNet.from_source(f"file:{tmp_path / 'r.safetensors'}")
    inner = torch.randint(0, 256, (1, 3, 40, 64), dtype=torch.uint8)
    padded = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    padded[:, :, :40] = inner
    squashed = torch.nn.functional.interpolate(inner.float(), (224, 224), mode="bilinear", antialias=True)
    found = object_map(network, batch_of(padded, torch.tensor([[40, 64]])))
    expected = object_map(network, batch_of(squashed.round().to(torch.uint8)))
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.005)


def test_files_of_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightError, match=r"holds a clipseg|does not fit"):
        ObjectResNet.from_source("world:clipseg")
    torch.save(timm.create_model("resnet34", num_classes=10).state_dict(), tmp_path / "other.pth")
    with pytest.raises(WeightError, match="does not fit ResNet"):
        ObjectResNet.from_source(f"file:{tmp_path / 'other.pth'}")


class Corner(Localizer):
    """Says the first of four rows."""

    input_spec = InputSpec()

    def localize(self, batch: AVBatch) -> Localization:
        heatmap = torch.zeros(len(batch), 1, 8, 8)
        heatmap[:, :, :2] = 1
        return Localization(heatmap, heatmap[:, :, 0, 0])


@pytest.mark.filterwarnings("ignore")
def test_the_row_stands_beside_the_method_s_in_one_run(tmp_path: Path) -> None:
    evaluator = Evaluator(controls=False, ogl=ObjectGuide("random", alpha=1.0))
    data = ToyData(ToySet("toy", 5), ToySet("toy", 5, row="shuffled sound"), ToySet("cal", 2))
    trainer(tmp_path, evaluator).test(Corner(), data, verbose=False)
    sets = json.loads((tmp_path / "results.json").read_text())["sets"]
    toy = sets["toy"]
    assert list(toy["rows"]) == ["model", "with OGL", "shuffled sound"]
    assert toy["rows"]["with OGL"] == toy["rows"]["model"]  # alpha 1 leaves the method alone
    assert toy["counted"] == {"model": 5, "with OGL": 5, "shuffled sound": 5}
    assert toy["notes"][-1] == "with OGL: ezvsl with alpha 1, ResNet-18 random."
    evaluator = Evaluator(controls=False, ogl=ObjectGuide("random", alpha=0.0))
    trainer(tmp_path, evaluator).test(Corner(), data, verbose=False)
    toy = json.loads((tmp_path / "results.json").read_text())["sets"]["toy"]
    assert toy["rows"]["with OGL"] != toy["rows"]["model"]  # alpha 0 leaves the object map alone


@pytest.mark.filterwarnings("ignore")
def test_missing_weights_are_told_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVLOC_WEIGHTS", str(tmp_path))
    run = trainer(tmp_path, Evaluator(ogl=ObjectGuide()), max_epochs=1)
    with pytest.raises(WeightError, match=r"resnet18-f37072fd\.pth"):
        run.fit(Learner(), ToyData(ToySet("toy", 5)))
    assert run.global_step == 0


@pytest.mark.slow
def test_two_processes_write_the_same_files(tmp_path: Path) -> None:
    data = ToyData(ToySet("toy", 5))
    ddp: dict[str, Any] = {"strategy": "ddp_spawn", "devices": 2, "use_distributed_sampler": False}
    for name, options in {"one": {"devices": 1}, "two": ddp}.items():
        evaluator = Evaluator(ogl=ObjectGuide("random"), out=str(tmp_path / name))
        trainer(tmp_path, evaluator, **options).test(Corner(), data, verbose=False)
    for file in ("results.json", "per_sample.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
