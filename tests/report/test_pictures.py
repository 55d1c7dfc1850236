from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import wandb
from PIL import Image

from avloc.report import pictures
from avloc.report.gallery import read_kept
from avloc.report.keys import KeysError
from avloc.report.pictures import Panels
from avloc.types import Localization
from tests.report.toy import Data, Set, Toy, make_batch, trainer


def test_panels_of_each_set_are_written(tmp_path):
    run = trainer(tmp_path, [Panels(count=4)])
    run.test(Toy(), Data(), verbose=False)
    folder = tmp_path / "toy" / "version_0" / "panels"
    assert {p.name for p in folder.iterdir() if p.suffix in (".png", ".html")} == {
        f"world-single{kind}.{form}" for kind in ("", "-shuffled-sound") for form in ("png", "html")
    }
    text = (folder / "world-single.html").read_text()
    assert [f"clip{i}" in text for i in range(5)] == [True] * 4 + [False]
    assert text.count("<audio") == 4
    assert "dog, cat / noise" in text
    assert text.count("IoU 0.50") == 4, "16 of 32 true pixels are found"


def test_a_test_keeps_evenly_spread_samples_one_by_one(tmp_path):
    run = trainer(tmp_path, [Panels(count=1, singles=4)])
    run.test(Toy(), Data(), verbose=False)
    kept = read_kept(tmp_path / "toy" / "version_0")
    assert [(k.set, k.index, k.key) for k in kept] == [("world:single", i, f"clip{i}") for i in (0, 4, 7, 11)]
    assert [(k.sounding, k.negative, k.label) for k in kept[::3]] == [
        (True, "", "dog, cat"),
        (False, "noise", "dog, cat"),
    ]
    assert [k.overlap for k in kept] == [0.5, 0.5, 0.5, None], "16 of 32 true pixels; what is silent has no truth"
    assert [k.share for k in kept] == [16 / 256] * 4
    assert all(k.confidence == 1 for k in kept)
    with Image.open(kept[0].picture) as picture, Image.open(kept[3].picture) as silent:
        assert picture.size == (4 * 160 + 3 * 4, 160)
        assert silent.size == (3 * 160 + 2 * 4, 160), "without the tile of the truth"
    wave, rate = soundfile.read(kept[0].sound)
    assert (rate, len(wave)) == (8000, 2000)
    assert np.abs(wave - 0.25).max() < 1e-4


class Groups(Set):
    """Pairs of samples that show one picture."""

    def key(self, i):
        return f"clip{i}"

    def picture(self, i):
        return f"scene{i // 2}"


def grouped():
    data = Data()
    data.test_sets[0] = Groups("world:pairs", "model")
    return data


def test_a_picture_is_kept_with_all_of_its_sounds(tmp_path):
    run = trainer(tmp_path, [Panels(count=1, singles=6)])
    run.test(Toy(), grouped(), verbose=False)
    kept = read_kept(tmp_path / "toy" / "version_0")
    assert [(k.shows, k.key) for k in kept] == [
        (f"scene{i // 2}", f"clip{i}")
        for i in (0, 1, 4, 5, 10, 11)  # pictures 0, 2 and 5 of six
    ]


def test_asked_samples_are_kept_by_any_of_their_names(tmp_path):
    run = trainer(tmp_path, [Panels(count=1, singles=0, keys="clip3,scene4")])
    run.test(Toy(), grouped(), verbose=False)
    kept = read_kept(tmp_path / "toy" / "version_0")
    assert [k.key for k in kept] == ["clip3", "clip8", "clip9"]
    assert all(k.true.is_file() and k.heat.is_file() for k in kept)
    with Image.open(kept[0].heat) as heat:
        assert heat.size == (160, 160)


def test_an_unknown_key_is_named_before_anything_is_tested(tmp_path):
    run = trainer(tmp_path, [Panels(keys=["clip3", "clp4"])])
    with pytest.raises(KeysError, match=r"no test set has clp4 \(did you mean clip"):
        run.test(Toy(), grouped(), verbose=False)
    assert not (tmp_path / "toy" / "version_0" / "panels").exists()


def test_a_mixture_tells_whose_colour_is_whose(tmp_path):
    batch = make_batch(0, 3)
    batch.truth = torch.cat([batch.truth, batch.truth.flip(-1)], 1)
    batch.class_id = torch.tensor([[0, 1]] * 3)
    heat = torch.rand(3, 3, 16, 16)
    answer = Localization(heat, torch.ones(3, 3), torch.tensor([[1, 5, -1]] * 3))
    first, _, silent = pictures.panels_of(batch, answer, [0, 1, 2], 8000, {5: "cow"})
    assert [name for name, _ in first.sources.legend] == ["dog", "cat", "cow"]
    assert first.sources.places == [1, 2]
    assert silent.sources.names == ["class 1", "cow"], "nothing that sounds lends a name"
    assert not len(silent.sources.truth)


class Said(Toy):
    """Every sound lies a third of the way from the first phrase to the second."""

    def embed_sound(self, batch):
        return torch.tensor([[2.0, 1.0, 0.0]]).expand(len(batch), -1)

    def embed_phrases(self, phrases):
        return torch.eye(3)[: len(phrases)]


def test_a_test_keeps_what_sounds_are_heard_as(tmp_path):
    data = Data()
    names = ["cat", "dog", "playing_tabla"]
    data.test_sets[0].records = [SimpleNamespace(targets=[SimpleNamespace(class_name=n)]) for n in names]
    trainer(tmp_path / "a", [Panels(count=1, singles=2, heard_as=2)]).test(Said(), data, verbose=False)
    kept = read_kept(tmp_path / "a" / "toy" / "version_0")
    for sample in kept:
        assert [phrase for phrase, _ in sample.heard_as] == ["cat", "dog"]
        assert [cosine for _, cosine in sample.heard_as] == [pytest.approx(2 / 5**0.5), pytest.approx(1 / 5**0.5)]
    trainer(tmp_path / "b", [Panels(count=1, singles=2)]).test(Toy(), data, verbose=False)
    assert all(sample.heard_as == [] for sample in read_kept(tmp_path / "b" / "toy" / "version_0"))


def test_a_part_of_a_set_is_spread_over_itself(tmp_path):
    run = trainer(tmp_path, [Panels(count=1, singles=3)], limit_test_batches=2)
    run.test(Toy(), Data(), verbose=False)
    kept = read_kept(tmp_path / "toy" / "version_0")
    assert [k.index for k in kept] == [0, 2, 5]


@pytest.mark.parametrize(
    ("size", "count", "places"),
    [(5, 9, {0, 1, 2, 3, 4}), (101, 3, {0, 50, 100}), (7, 1, {0}), (0, 4, set()), (9, 0, set())],
)
def test_spread_by_hand(size, count, places):
    assert pictures.spread(size, count) == places


@pytest.mark.parametrize(("every", "written"), [(2, True), (3, False), (0, False)])
def test_validation_panels_follow_the_epochs(tmp_path, every, written):
    run = trainer(tmp_path, [Panels(2, every)], max_epochs=2, num_sanity_val_steps=1)
    run.fit(Toy(), Data())
    assert (tmp_path / "toy" / "version_0" / "panels" / "val_world-val.html").exists() == written


def test_wandb_table_has_pictures_and_sound():
    batch = make_batch(0, 2)
    panels = pictures.panels_of(batch, Toy().localize(batch), [0, 1], 8000)
    table = pictures.wandb_table(panels)
    assert table.columns == ["key", "image", "overlay", "label", "IoU", "sound"]
    key, image, drawn, label, iou, sound = table.data[1]
    assert (key, label, iou) == ("clip1", "dog, cat / noise", 0.5)
    assert (image.image.size, drawn.image.size) == ((160, 160), (160, 160))  # repeated until legible
    assert isinstance(sound, wandb.Audio)
