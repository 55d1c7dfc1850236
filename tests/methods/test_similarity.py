"""Patch-wise cosine similarity against cosines taken one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from avloc.backbones.audioclip import AudioCLIP
from avloc.backbones.clipseg import normalise
from avloc.backbones.wav2clip import Wav2CLIP
from avloc.methods.baselines.similarity import PatchSimilarity
from avloc.methods.load import load_method
from avloc.types import AVBatch
from avloc.weights import WeightError
from tests.methods.test_tvsl import NAMES, batch, noise
from tests.methods.tiny import WAV2CLIP, tiny_audioclip_files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("towers")
    Wav2CLIP(replace(WAV2CLIP, mlp_units=(64, 32, 48))).save_world(folder / "narrow.safetensors")
    return tiny_audioclip_files(folder, NAMES) | {"narrow": f"file:{folder / 'narrow.safetensors'}"}


def audioclip(files: dict[str, str], **options: object) -> PatchSimilarity:
    return PatchSimilarity(audioclip=files["audioclip"], seconds=0.5, heatmap_size=4, **options)


def test_audioclip_compares_each_patch_with_the_whole_sound(files: dict[str, str]) -> None:
    model = audioclip(files).eval()
    b = batch([[0, 3], [2, 5]], tiles=2)
    answer = model.localize(b)
    assert answer.heatmap.shape == (2, 1, 4, 8)
    towers = AudioCLIP.from_source(files["audioclip"])
    with torch.no_grad():
        tokens, sound = towers.image_tokens(normalise(b.image), "grid"), towers.encode_audio(b.audio)
    for i in range(2):
        cosine = torch.stack([F.cosine_similarity(t, sound[i], dim=0) for t in tokens[i]])
        want = (cosine - cosine.min()) / (cosine.max() - cosine.min())
        torch.testing.assert_close(answer.heatmap[i, 0], want.view(4, 8), atol=1e-4, rtol=1e-4)
        assert answer.confidence[i, 0].item() == pytest.approx(cosine.max().item(), abs=1e-5)


def test_wav2clip_s_vit_sees_each_picture_of_a_row_by_itself(files: dict[str, str]) -> None:
    model = PatchSimilarity(None, files["wav2clip"], files["clip"], seconds=0.5, heatmap_size=8).eval()
    assert model.input_spec.sample_rate == 8000
    image = (noise(2, 3, 64, 128) * 60 + 128).clamp(0, 255).to(torch.uint8)
    b = AVBatch(["a", "b"], image, 0.3 * noise(2, 4000, seed=1), torch.arange(2))
    with torch.no_grad():
        row = model.towers.see(image)
        left, right = model.towers.see(image[..., :64]), model.towers.see(image[..., 64:])
    assert row.shape == (2, 64, 8, 16)
    torch.testing.assert_close(row, torch.cat([left, right], dim=-1), atol=1e-5, rtol=1e-4)
    # The class token of that last layer, which open_clip pools, is projected as the patches are.
    pooled, tokens = model.towers.clip.clip.visual(normalise(image[..., :64]))
    torch.testing.assert_close(
        left[:, :, 0, 3], tokens[:, 3] @ model.towers.clip.clip.visual.proj, atol=1e-5, rtol=1e-4
    )
    assert pooled.shape == (2, 64)
    assert model.localize(b).heatmap.shape == (2, 1, 8, 16)


def test_zero_shot_has_nothing_to_train(files: dict[str, str]) -> None:
    model = audioclip(files)
    assert not model.trainable()
    with pytest.raises(TypeError, match="nothing to train"):
        model.training_losses(batch([[0], [1]]))


def test_tuning_starts_at_zero_shot_and_learns_its_two_layers(files: dict[str, str], tmp_path: Path) -> None:
    b = batch([[0], [3], [2], [5]])
    model = audioclip(files, tuning="linear", mixed=2).train()
    torch.testing.assert_close(model.localize(b).heatmap, audioclip(files).localize(b).heatmap)
    optimizer = torch.optim.Adam(model.trainable(), lr=1e-2)
    losses = []
    for _ in range(8):
        torch.manual_seed(0)
        loss = model.training_losses(b)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert model.learned_keys() == {"seen.weight", "heard.weight"}
    state = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    state["pytorch-lightning_version"] = "2.5.0"
    model.on_save_checkpoint(state)
    torch.save(state, tmp_path / "best.ckpt")
    again = load_method(tmp_path / "best.ckpt", "cpu")
    torch.testing.assert_close(again.localize(b).heatmap, model.eval().localize(b).heatmap)


@pytest.mark.parametrize("ears", ["audioclip", "wav2clip"])
def test_full_tuning_trains_both_encoders_and_no_text(files: dict[str, str], tmp_path: Path, ears: str) -> None:
    towers = {"audioclip": files["audioclip"]} if ears == "audioclip" else files | {"audioclip": None}
    towers = {k: v for k, v in towers.items() if k in ("audioclip", "wav2clip", "clip")}
    model = PatchSimilarity(**towers, seconds=0.5, heatmap_size=8, tuning="full", mixed=2).train()
    zero_shot = PatchSimilarity(**towers, seconds=0.5, heatmap_size=8)
    side = model.input_spec.image_size
    b = batch([[0], [3], [2], [5]])
    b.image = (noise(4, 3, side, side) * 60 + 128).clamp(0, 255).to(torch.uint8)
    torch.testing.assert_close(model.localize(b).heatmap, zero_shot.localize(b).heatmap)

    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.trainable(), lr=1e-3)
    losses = []
    for _ in range(6):
        torch.manual_seed(0)
        loss = model.training_losses(b)["loss"]
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.trainable())  # DDP waits for every one
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    learnt = {k for k, p in model.named_parameters() if p.requires_grad}
    assert changed <= learnt  # statistics of batch norms stay
    encoders = {"audioclip": ("towers.clip.visual.", "towers.clip.audio.")}
    seen, heard = encoders.get(ears, ("towers.clip.clip.visual.", "towers.ears."))
    assert all(k.startswith((seen, heard)) for k in learnt)
    assert not any(part in k for k in learnt for part in ("token_embedding", "text_projection"))
    for prefix in (seen, heard):  # everything there but the kernels of the spectrogram
        names = {k for k, _ in model.named_parameters() if k.startswith(prefix) and ".fbsp." not in k}
        assert names == {k for k in learnt if k.startswith(prefix)}
        assert any(k.startswith(prefix) for k in changed)

    state = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    state["pytorch-lightning_version"] = "2.5.0"
    model.on_save_checkpoint(state)
    assert not any("token_embedding" in k for k in state["state_dict"])
    torch.save(state, tmp_path / "best.ckpt")
    again = load_method(tmp_path / "best.ckpt", "cpu")
    torch.testing.assert_close(again.localize(b).heatmap, model.eval().localize(b).heatmap)


def test_the_transform_is_taken_of_the_cosines_before_they_are_resized(files: dict[str, str]) -> None:
    b = batch([[0, 3], [2, 5]], tiles=2)
    plain, squared = audioclip(files).localize(b), audioclip(files, transform="squared").localize(b)
    towers = AudioCLIP.from_source(files["audioclip"])
    with torch.no_grad():
        tokens, sound = towers.image_tokens(normalise(b.image), "grid"), towers.encode_audio(b.audio)
    for i in range(2):
        x = torch.stack([max(F.cosine_similarity(t, sound[i], dim=0), torch.tensor(0.0)) ** 2 for t in tokens[i]])
        want = (x - x.min()) / (x.max() - x.min()) if x.max() > x.min() else x
        torch.testing.assert_close(squared.heatmap[i, 0], want.view(4, 8), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(squared.confidence, plain.confidence)


def test_the_tuned_loss_is_the_contrast_of_the_most_similar_patches(files: dict[str, str]) -> None:
    b = batch([[0], [3], [2]])
    model = audioclip(files, tuning="linear", tau=0.5)
    with torch.no_grad():
        patches, sound = model.tokens(b)
        S = torch.tensor(
            [[max((sound[i] @ p).item() for p in patches[j].flatten(1).T) / 0.5 for j in range(3)] for i in range(3)]
        )
        want = sum(x[i].logsumexp(0) - x[i, i] for x in (S, S.T) for i in range(3)) / 6
        assert model.training_losses(b)["loss"].item() == pytest.approx(want.item(), rel=1e-4)


def test_towers_that_do_not_go_together(files: dict[str, str]) -> None:
    with pytest.raises(WeightError, match="is no ViT with embeddings of 48"):
        PatchSimilarity(None, files["narrow"], files["clip"])
    for given in ((files["audioclip"], files["wav2clip"]), (None, files["wav2clip"]), (None, None, files["clip"])):
        with pytest.raises(ValueError, match="with audioclip, or with wav2clip and its clip"):
            PatchSimilarity(*given)
    model = PatchSimilarity(None, files["wav2clip"], files["clip"], seconds=0.5)
    with pytest.raises(ValueError, match="64 x 64 pixels, or several in a row; got 64 x 96"):
        model.towers.see(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
