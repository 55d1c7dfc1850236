"""CLIPSeg asked by words, against transformers' CLIPSeg on one picture and one text at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import Tensor

from avloc.backbones.clipseg import CLIP_MEAN, CLIP_STD, CLIPSeg
from avloc.data.module import AVDataModule
from avloc.methods.baselines.spaces import Space
from avloc.methods.baselines.text_grounder import TextGrounder
from avloc.types import AVBatch
from avloc.weights import WeightFile
from avloc.world import write_world
from tests.methods.test_zero_shot import NAMES, lively_clipseg, of_classes, transformers_model
from tests.methods.tiny import SIDE, tiny_batch

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Pitch(Space):
    """Hears how loud a sound is, in steps of 0.1, and reads a name's place in the list: a hand-made space."""

    def __init__(self, names: Sequence[str] = NAMES) -> None:
        files = {"pitch": WeightFile("random", None, "")}
        super().__init__(sample_rate=8000, seconds=0.5, image_size=0, width=2, files=files)
        self.names, self.reads = list(names), 0

    def sound_embedding(self, audio: Tensor) -> Tensor:
        return around((audio.abs().amax(1) * 10).round())

    def text_embedding(self, texts: list[str]) -> Tensor:
        self.reads += 1
        return around(torch.tensor([float(self.names.index(t.removeprefix("the sound of "))) for t in texts]))


def around(step: Tensor) -> Tensor:
    return torch.stack([torch.cos(step / 2), torch.sin(step / 2)], dim=1)


@pytest.fixture(scope="module")
def grounder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("towers") / "clipseg.safetensors"
    lively_clipseg().save_world(path)
    return f"file:{path}"


def method(grounder: str, space: Space | None = None, **options: Any) -> TextGrounder:
    return TextGrounder(grounder, space, image_size=SIDE, heatmap_size=SIDE, **options).eval()


def loud(batch: AVBatch, *steps: int) -> AVBatch:
    wave = torch.sin(torch.arange(4000) / 7)
    return replace(batch, audio=torch.stack([0.1 * s * wave / wave.abs().max() for s in steps]))


def logits_of(source: str, image: Tensor, text: str, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Transformers' logits for one picture uint8 ``[3, S, S]``."""
    grounder = CLIPSeg.from_source(source)
    assert grounder.tokenizer is not None
    pixels = (image / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    ids = torch.tensor([grounder.tokenizer.encode(text)])
    with torch.no_grad():
        model = transformers_model(grounder)
        found = model(input_ids=ids, pixel_values=pixels[None], attention_mask=torch.ones_like(ids)).logits
    return found.view(SIDE, SIDE)


def map_of(source: str, image: Tensor, text: str, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return 1 / (1 + torch.exp(-logits_of(source, image, text, mean, std)))


@pytest.mark.parametrize(
    ("statistics", "of_pixels"), [("imagenet", IMAGENET), ("clip", (CLIP_MEAN, CLIP_STD))], ids=["imagenet", "clip"]
)
@pytest.mark.parametrize("wording", ["{}", "a photo of a {}"])
def test_the_oracle_is_told_every_true_name(grounder: str, statistics: str, of_pixels: Any, wording: str) -> None:
    batch = of_classes(tiny_batch(3), [0, 3], [1, -1], [2, 2])
    answer = method(grounder, statistics=statistics, wording=wording).localize(batch)
    assert answer.heatmap.shape == (3, 2, SIDE, SIDE)
    assert answer.label is not None
    assert torch.equal(answer.label, torch.tensor([[0, 3], [1, -1], [2, 2]]))
    for b, names in enumerate(batch.label):
        for s, name in enumerate(names):
            if name:
                want = map_of(grounder, batch.image[b], wording.replace("{}", name), *of_pixels)
                torch.testing.assert_close(answer.heatmap[b, s], want, atol=1e-4, rtol=1e-4)
    assert (answer.heatmap[1, 1] == 0).all()
    assert answer.confidence[1, 1] == -1
    assert (answer.heatmap[0, 0] - answer.heatmap[0, 1]).abs().max() > 1e-4


def test_imagenet_is_what_clipseg_s_own_processor_says(grounder: str) -> None:
    assert method(grounder).statistics == "imagenet"
    from torchvision.models import ResNet18_Weights  # type: ignore[import-untyped]

    transform = ResNet18_Weights.IMAGENET1K_V1.transforms()
    assert (tuple(transform.mean), tuple(transform.std)) == IMAGENET


def test_the_nearest_name_is_asked_for(grounder: str) -> None:
    space = Pitch()
    batch = loud(of_classes(tiny_batch(3), [0], [0], [0]), 3, 1, 4)
    model = method(grounder, space, classes=NAMES, space_wording="the sound of {}", wording="a photo of a {}")
    assert (model.input_spec.sample_rate, model.input_spec.seconds) == (8000, 0.5)
    answer = model.localize(batch)
    for b, name in enumerate(["dog", "drum", "cat"]):
        want = map_of(grounder, batch.image[b], f"a photo of a {name}", *IMAGENET)
        torch.testing.assert_close(answer.heatmap[b, 0], want, atol=1e-4, rtol=1e-4)
    assert answer.label is None  # a list of the user's own need not count as the data set does
    model.localize(batch)
    assert space.reads == 1


def test_the_confidence_is_the_text_s_cosine_with_what_is_under_its_mask(grounder: str) -> None:
    batch = of_classes(tiny_batch(2), [0], [3])
    model = method(grounder, statistics="clip")
    answer = model.localize(batch)
    towers = CLIPSeg.from_source(grounder)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (CLIP_MEAN, CLIP_STD))
    with torch.no_grad():
        for b, name in enumerate(["bell", "dog"]):
            features = towers.encode_image(((batch.image[b] / 255 - mean) / std)[None], dense=True)
            assert features.dense is not None
            text = towers.encode_text(towers.tokenize([name]))[0].numpy()
            M = logits_of(grounder, batch.image[b], name, CLIP_MEAN, CLIP_STD).double().numpy()
            m = (M - M.min()) / (M.max() - M.min())
            weight = 1 / (1 + np.exp(-(m - 0.5) / 0.07))
            seen = np.zeros(len(text))
            patches = features.dense[0].numpy()
            for i in range(2):
                for j in range(2):
                    seen += weight[16 * i, 16 * j] * patches[:, i, j]
            want = seen @ text / np.linalg.norm(seen) / np.linalg.norm(text)
            assert answer.confidence[b, 0].item() == pytest.approx(want, abs=1e-4)


def test_nothing_sounds_and_the_oracle_says_so(grounder: str) -> None:
    batch = replace(of_classes(tiny_batch(2), [0], [1]), sounding=torch.tensor([True, False]))
    answer = method(grounder).localize(batch)
    assert (answer.heatmap[1] == 0).all()
    assert answer.confidence[1].item() == -1
    assert (answer.heatmap[0] > 0).any()
    assert answer.label is not None
    assert answer.label.tolist() == [[0], [-1]]
    silent = replace(tiny_batch(1), sounding=torch.tensor([False]), label=[[]])
    assert (method(grounder).localize(silent).heatmap == 0).all()


def test_names_without_numbers_keep_the_order_of_the_truth(grounder: str) -> None:
    batch = replace(tiny_batch(1), label=[["dog", "bell"]], class_id=torch.tensor([[-1, -1]]))
    answer = method(grounder).localize(batch)
    assert answer.label is None
    want = map_of(grounder, batch.image[0], "dog", *IMAGENET)
    torch.testing.assert_close(answer.heatmap[0, 0], want, atol=1e-4, rtol=1e-4)


def test_underscores_of_list_files_are_blanks(grounder: str) -> None:
    batch = of_classes(tiny_batch(1), [0])
    spelt, listed = (replace(batch, label=[[name]]) for name in ("dog bell", "dog_bell"))
    model = method(grounder)
    assert torch.equal(model.localize(spelt).heatmap, model.localize(listed).heatmap)


def test_what_cannot_be_asked_is_told(grounder: str) -> None:
    with pytest.raises(ValueError, match="s0_1 has no class name, which the oracle must be told"):
        method(grounder).localize(replace(tiny_batch(2), label=[["dog"], []]))
    with pytest.raises(ValueError, match=r"a wording must hold {} once"):
        method(grounder, wording="a photo")
    with pytest.raises(ValueError, match="must be told which classes to ask for"):
        method(grounder, Pitch(), otherwise=None).localize(tiny_batch(1))


@pytest.mark.filterwarnings("ignore")
def test_candidates_are_those_of_the_tested_set(grounder: str, tmp_path: Path) -> None:
    """Which one the sound is nearest to is the set's own number; a set without names falls back on the other list."""
    write_world(tmp_path / "world", "single", scenes=6)
    model = method(grounder, Pitch(), otherwise=NAMES)
    data = AVDataModule(test=["world:single"], root=str(tmp_path), eval_batch_size=3, num_workers=0)
    model.space = named = Pitch([])
    data.input_spec = replace(model.input_spec, sample_rate=16000)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", **quiet)
    data.setup("test")
    truth = sorted({(t.class_id, t.class_name) for r in data.test_sets[0].records for t in r.targets})
    named.names = [name for _, name in truth]
    answers: Any = trainer.predict(model, data)
    numbers = [n for n, _ in truth]
    loudness = torch.cat([b.audio.abs().amax(1) * 10 for b in data.test_dataloader()[0]]).round()
    want = [
        numbers[int(F.cosine_similarity(around(s[None]), around(torch.arange(len(truth)))).argmax())] for s in loudness
    ]
    assert torch.cat([a.label for a in answers])[:, 0].tolist() == want
    model.of_set = None  # a set that names nothing
    model.space = Pitch()
    assert model.classes().names == tuple(NAMES)
    assert model.localize(loud(tiny_batch(1), 2)).label is None
