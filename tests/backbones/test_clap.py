"""CLAP behind its batched front end against transformers' own extractor, tokenizer and model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers.implementations import ByteLevelBPETokenizer
from tokenizers.processors import RobertaProcessing
from torch import Tensor
from transformers import ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

from avloc.backbones.clap import CLAP, UNFUSED, ClapFrontend
from avloc.backbones.tokens import train_world_tokenizer
from avloc.weights import WeightError

SETTINGS = UNFUSED | {
    "feature_size": 16,
    "sampling_rate": 8000,
    "hop_length": 130,
    "max_length_s": 1,
    "fft_window_size": 256,
    "frequency_max": 3900,
}
AUDIO = {
    "num_mel_bins": 16,
    "spec_size": 32,
    "window_size": 4,
    "patch_embeds_hidden_size": 8,
    "depths": [1, 1],
    "num_attention_heads": [2, 2],
    "hidden_size": 16,
}
TEXT = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}
CONFIG = {"text_config": TEXT, "audio_config": AUDIO, "projection_dim": 8}


def noise(*shape: int, seed: int = 1) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as Hugging Face's: the weights and what is said about them."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights") / "laion--clap-htsat-unfused"
    model = CLAP(CONFIG, SETTINGS).model
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)  # no zero biases or tables, which could be forgotten
    model.save_pretrained(folder)
    ClapFeatureExtractor(**SETTINGS).save_pretrained(folder)
    bpe = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    bpe.train_from_iterator(["the sound of a dog", "a barking dog and a cat"], 300, 1, special_tokens=special)
    bpe._tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    bpe.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("settings", [SETTINGS, UNFUSED])
@pytest.mark.parametrize("seconds", [1.0, 0.37, 0.5])
def test_front_end_against_the_extractor(settings: dict, seconds: float) -> None:
    rate, longest = settings["sampling_rate"], settings["max_length_s"]
    clip = torch.stack([noise(round(longest * seconds * rate)), 1e-7 * noise(round(longest * seconds * rate))])
    got = ClapFrontend(settings)(clip)
    theirs = ClapFeatureExtractor(**settings)
    want = theirs(list(clip.numpy()), sampling_rate=rate, return_tensors="pt")["input_features"]
    assert got.shape == want.shape
    torch.testing.assert_close(got, want.float(), atol=2e-2, rtol=1e-4)
    assert got[1].min() == pytest.approx(-100)  # the floor, in decibels


def test_of_a_long_clip_the_middle_is_heard() -> None:
    front = ClapFrontend(SETTINGS)
    clip = noise(1, 9001)
    assert torch.equal(front(clip), front(clip[:, 500:8500]))
    assert front.half().window.dtype == torch.float32
    with pytest.raises(ValueError, match=r"mono waveform \[B, T\] \(8000 Hz\), got \[2, 0\]"):
        front(torch.zeros(2, 0))


def test_snapshot_answers_as_transformers_does(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVLOC_WEIGHTS", str(snapshot.parent))
    ours, theirs = CLAP.from_source("hf:laion/clap-htsat-unfused"), ClapModel.from_pretrained(snapshot).eval()
    assert ours.file.path == snapshot / "model.safetensors"
    assert (ours.width, ours.sample_rate) == (8, 8000)
    assert not any(p.requires_grad for p in ours.parameters())
    assert not any(m.training for m in ours.train().modules())
    clip = noise(3, 3000)
    features = ClapFeatureExtractor.from_pretrained(snapshot)(
        list(clip.numpy()), sampling_rate=8000, return_tensors="pt"
    )
    with torch.no_grad():
        want = theirs.get_audio_features(input_features=features["input_features"].float()).pooler_output
        torch.testing.assert_close(ours.encode_audio(clip), want, atol=1e-4, rtol=1e-3)
        texts = ["the sound of a dog", "a cat", "Ünknown!"]
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(snapshot / "tokenizer.json"), pad_token="<pad>")
        encoded = tokenizer(texts, padding=True, return_tensors="pt")
        ids, mask = ours.tokenize(texts)
        assert torch.equal(ids, encoded["input_ids"])
        assert torch.equal(mask, encoded["attention_mask"])
        want = theirs.get_text_features(ids, mask).pooler_output
        torch.testing.assert_close(ours.encode_text(texts), want, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.encode_text(["a cat"])[0], want[1], atol=1e-5, rtol=1e-4)
    assert ours.encode_text(texts).norm(dim=-1).tolist() == pytest.approx([1, 1, 1])


def test_pickled_snapshot_without_derived_buffers(snapshot: Path, tmp_path: Path) -> None:
    model = CLAP.from_source(f"file:{snapshot / 'model.safetensors'}").model
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("_ids")}
    torch.save(state, tmp_path / "pytorch_model.bin")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((snapshot / name).read_text())
    with pytest.raises(WeightError, match=r"tokenizer\.json of file:.* must lie beside"):
        CLAP.from_source(f"file:{tmp_path / 'pytorch_model.bin'}")
    (tmp_path / "tokenizer.json").write_text((snapshot / "tokenizer.json").read_text())
    again = CLAP.from_source(f"file:{tmp_path / 'pytorch_model.bin'}")
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.model.state_dict().items())


def test_fused_model_is_refused(snapshot: Path, tmp_path: Path) -> None:
    for path in snapshot.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = json.loads((snapshot / "preprocessor_config.json").read_text()) | {"truncation": "fusion"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(WeightError, match="'fusion' and padding 'repeatpad' is not supported"):
        CLAP.from_source(f"file:{tmp_path / 'model.safetensors'}")
    with pytest.raises(ValueError, match="Use an unfused one"):
        CLAP({**CONFIG, "audio_config": {**AUDIO, "enable_fusion": True}}, SETTINGS)


def test_too_long_a_text_is_named(snapshot: Path) -> None:
    model = CLAP.from_source(f"file:{snapshot / 'model.safetensors'}")
    assert model.tokenize([" dog" * 16])[0].shape == (1, 18)
    with pytest.raises(ValueError, match="has 19 tokens, CLAP's text tower takes 18"):
        model.tokenize(["a", " dog" * 17])
    with pytest.raises(ValueError, match="without a tokenizer"):
        CLAP(CONFIG, SETTINGS).tokenize(["a"])


def test_world_file_loads_as_it_was_saved(tmp_path: Path) -> None:
    torch.manual_seed(1)
    tokenizer = train_world_tokenizer(["a", "dog"])
    text = TEXT | {"vocab_size": 6, "pad_token_id": 5, "bos_token_id": 3, "eos_token_id": 4}
    model = CLAP({**CONFIG, "text_config": text}, SETTINGS, tokenizer).eval()
    path = tmp_path / "tiny.safetensors"
    model.save_world(path, command="none")
    again = CLAP.from_source(f"file:{path}")
    assert again.config.audio_config.depths == [1, 1]
    assert again.tokenize(["dog", "a dog"])[0].tolist() == [[3, 2, 4, 5], [3, 1, 2, 4]]
    clip = noise(2, 8000)
    with torch.no_grad():
        torch.testing.assert_close(again.encode_audio(clip), model.encode_audio(clip), atol=5e-3, rtol=0)
        torch.testing.assert_close(again.encode_text(["a"]), model.encode_text(["a"]), atol=5e-3, rtol=0)
    assert isinstance(tokenizers.Tokenizer.from_str(again.tokenizer.serialise()), tokenizers.Tokenizer)
