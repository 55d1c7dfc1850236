from __future__ import annotations

import pytest
import torch

from avloc.metrics.regions import count_regions


def by_flooding(plane: torch.Tensor, smallest: float) -> int:
    """Regions of one plane, by walking from pixel to pixel."""
    left = {(int(y), int(x)) for y, x in plane.nonzero()}
    found = 0
    while left:
        waiting, size = [left.pop()], 1
        while waiting:
            y, x = waiting.pop()
            near = {(y + j, x + i) for j in (-1, 0, 1) for i in (-1, 0, 1)} & left
            left -= near
            size += len(near)
            waiting += near
        found += size >= smallest * plane.numel()
    return found


@pytest.mark.parametrize("density", [0.0, 0.1, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("smallest", [0.0, 0.01, 0.2])
def test_regions_are_those_of_a_walk_over_the_pixels(density: float, smallest: float) -> None:
    torch.manual_seed(0)
    planes = torch.rand(5, 13, 17) < density
    assert count_regions(planes, smallest).tolist() == [by_flooding(p, smallest) for p in planes]


def test_planes_are_counted_apart_and_specks_left_out() -> None:
    planes = torch.zeros(3, 40, 40, dtype=torch.bool)
    planes[:2, 3:9, 3:9] = True  # the same place in two planes
    planes[1, 9, 9] = True  # touches the corner
    planes[1, 30, 30] = True  # one pixel of 1600 is a speck
    assert count_regions(planes).tolist() == [1, 1, 0]
    assert count_regions(planes[:0]).tolist() == []
