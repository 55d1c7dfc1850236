from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from avloc.data.items import sample_rng
from avloc.data.views import fit_image
from avloc.types import InputSpec
from tests.data.make import gradient


def test_squash_and_crop_are_pillows() -> None:
    image = gradient(60, 30)
    squashed = fit_image(image, InputSpec(image_size=20, interpolation="bilinear"))
    expected = image.resize((20, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(squashed.transpose(1, 2, 0), np.asarray(expected))
    cropped = fit_image(image, InputSpec(image_size=20, resize="crop"))
    expected = image.resize((40, 20), Image.Resampling.BICUBIC).crop((10, 0, 30, 20))
    np.testing.assert_array_equal(cropped.transpose(1, 2, 0), np.asarray(expected))


def test_training_crops_and_flips_follow_from_seed_epoch_and_key() -> None:
    spec = InputSpec(image_size=352, train_scale=1.1, train_flip=0.5)
    image = gradient(500, 400)
    a = fit_image(image, spec, sample_rng(1, 2, "k"))
    assert a.shape == (3, 352, 352)
    np.testing.assert_array_equal(a, fit_image(image, spec, sample_rng(1, 2, "k")))
    whole = np.asarray(image.resize((387, 387), Image.Resampling.BICUBIC)).transpose(2, 0, 1)  # int(352 * 1.1)
    corners, flips = set(), 0
    for epoch in range(40):
        view = fit_image(image, spec, sample_rng(1, epoch, "k"))
        flipped = view[0, 0, 0] > view[0, 0, -1]
        flips += flipped
        view = view[:, :, ::-1] if flipped else view
        corner = next((t, x) for t in range(36) for x in range(36)
                      if np.array_equal(whole[:, t : t + 352, x : x + 352], view))  # fmt: skip
        corners.add(corner)
    assert len(corners) > 30
    assert 10 < flips < 30


def test_a_very_long_picture_is_cut_before_it_is_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """60,000 x 1 as 32 x 32 would be 61 million pixels on the way; where both ways can be gone they agree."""
    spec = InputSpec(image_size=32, resize="crop")
    ramp = np.repeat((np.arange(60000) // 300).astype(np.uint8)[None, :, None], 3, 2)
    wide = fit_image(Image.fromarray(np.repeat(ramp[:, 20000:30000], 4, 0)), spec)
    monkeypatch.setenv("AVLOC_MOST_PIXELS", "1000")
    assert fit_image(Image.fromarray(ramp), spec).shape == (3, 32, 32)
    assert fit_image(Image.fromarray(ramp.transpose(1, 0, 2).copy()), spec).shape == (3, 32, 32)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 400, 3), np.uint8)).resize((200, 20))
    cut = fit_image(noise, spec)
    assert np.array_equal(fit_image(Image.fromarray(np.repeat(ramp[:, 20000:30000], 4, 0)), spec), wide)
    monkeypatch.undo()
    whole = fit_image(noise, spec)
    assert np.abs(cut.astype(int) - whole)[:, 2:-2, 2:-2].max() <= 1
