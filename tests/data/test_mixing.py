"""Mixtures of a batch against plain loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from avloc.data.mixing import draw_partners, mix_batch, sources_of, sum_sounds
from avloc.types import AVBatch


def batch(classes: list[int], maps: bool = True) -> AVBatch:
    g = torch.Generator().manual_seed(3)
    B = len(classes)
    return AVBatch(
        key=[f"s{i}" for i in range(B)],
        image=torch.randint(256, (B, 3, 4, 4), generator=g).to(torch.uint8),
        audio=torch.randn(B, 10, generator=g),
        index=torch.full((B,), -1),
        truth=torch.rand(B, 1, 5, 5, generator=g) if maps else None,
        class_id=torch.tensor(classes)[:, None],
        label=[[f"class {c}"] for c in classes],
    )


@pytest.mark.parametrize("sources", [1, 2, 3, 4])
def test_partners_are_of_classes_that_the_row_does_not_have(sources: int) -> None:
    classes = [0, 0, 1, 2, 2, 2, 3, 0]
    for seed in range(30):
        rows = draw_partners(classes, sources, torch.Generator().manual_seed(seed))
        assert rows.shape == (8, sources)
        assert rows[:, 0].tolist() == list(range(8))
        for row in rows.tolist():
            assert len({classes[i] for i in row}) == sources


def test_every_sample_of_another_class_is_equally_likely() -> None:
    classes = [0, 0, 1, 2, 2, 2]
    torch.manual_seed(0)
    drawn = torch.stack([draw_partners(classes, 2)[0, 1] for _ in range(4000)])
    counts = np.bincount(drawn.numpy(), minlength=6)
    assert counts[:2].tolist() == [0, 0]
    # 4000 draws of 4 samples: 1000 each, deviation sqrt(4000 * 3 / 16) = 27.
    assert np.abs(counts[2:] - 1000).max() < 110


def test_the_step_s_seed_decides_the_draw() -> None:
    def draw(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return draw_partners(list(range(9)), 3).tolist()

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


def test_mixtures_lie_side_by_side_under_the_sum_of_their_sounds() -> None:
    b = batch([4, 7, 9])
    rows = torch.tensor([[0, 2, 1], [2, 1, 0]])
    m = mix_batch(b, rows)
    assert m.image.shape == (2, 3, 4, 12)
    assert m.truth is not None
    assert m.truth.shape == (2, 3, 5, 15)
    for i, row in enumerate(rows.tolist()):
        for t, s in enumerate(row):
            assert torch.equal(m.image[i, :, :, 4 * t : 4 * t + 4], b.image[s])
            for source in range(3):
                tile = m.truth[i, source, :, 5 * t : 5 * t + 5]
                assert torch.equal(tile, b.truth[s, 0] if source == t else torch.zeros(5, 5))
        np.testing.assert_allclose(m.audio[i].numpy(), sum(b.audio[s].numpy() for s in row), rtol=1e-6, atol=1e-6)
    assert m.class_id.tolist() == [[4, 9, 7], [9, 7, 4]]
    assert m.label == [["class 4", "class 9", "class 7"], ["class 9", "class 7", "class 4"]]
    assert m.key == ["s0+s2+s1", "s2+s1+s0"]
    assert len(m) == len(m.index) == 2


def test_loud_sums_are_neither_clipped_nor_rescaled() -> None:
    assert sum_sounds(torch.full((2, 3), 0.8), torch.tensor([[0, 1]])).tolist() == [[pytest.approx(1.6)] * 3]


def test_what_cannot_be_mixed_is_said() -> None:
    with pytest.raises(ValueError, match=r"2 classes has no mixtures of 3.*batch_size"):
        draw_partners([0, 0, 1], 3)
    two = replace(batch([1, 2]), label=[["dog", "cat"], ["cat"]])
    with pytest.raises(ValueError, match="s0 has 2 known sources"):
        sources_of(two)
    unknown = replace(batch([1, -1]), label=[])
    with pytest.raises(ValueError, match="s1 has no known sources"):
        sources_of(unknown)
    with pytest.raises(ValueError, match="stored features cannot be mixed"):
        mix_batch(replace(batch([1, 2]), stored={"frozen": torch.zeros(2, 1)}), torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match="padded pictures"):
        mix_batch(replace(batch([1, 2]), size=torch.ones(2, 2)), torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match="several sources"):
        mix_batch(replace(batch([1, 2]), class_id=torch.ones(2, 2)), torch.tensor([[0, 1]]))


def test_sources_go_by_name_else_by_number() -> None:
    assert sources_of(batch([3, 5])) == ["class 3", "class 5"]
    assert sources_of(replace(batch([3, 5]), label=[])) == [3, 5]
