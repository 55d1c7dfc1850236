"""SOUPLE's context: where it stands, what it depends on, how many parameters it has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentError, ArgumentParser
from lightning import Trainer

from avloc.backbones.clipseg import ImageFeatures, normalise
from avloc.methods.load import load_method
from avloc.methods.souple import SOUPLE
from avloc.methods.souple.network import Context, MetaNet, SOUPLENetwork
from tests.methods.tiny import tiny_batch, tiny_beats, tiny_clipseg, tiny_files


def network(**options: object) -> SOUPLENetwork:
    torch.manual_seed(1)
    return SOUPLENetwork(tiny_clipseg(), tiny_beats(), Context(**options)).eval()  # type: ignore[arg-type]


def prompts(net: SOUPLENetwork) -> list[torch.Tensor]:
    """The rows that reach the text tower, per call."""
    seen: list[torch.Tensor] = []
    encode = net.av_grounder.encode_tokens
    net.av_grounder.encode_tokens = lambda x: seen.append(x) or encode(x)  # type: ignore[assignment]
    batch = tiny_batch(2)
    features = net.see(normalise(batch.image))
    net.answer(features, net.hear(batch.audio))
    return seen


@pytest.mark.parametrize("context", [4, 8, 16])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_context_stands_around_the_audio_token(context: int, position: int) -> None:
    net = network(context=context, position=position)
    (rows,) = prompts(net)
    assert rows.shape[1] == 1 + context + 1 + 1  # start, V_1..V_M, V_A, end
    batch = tiny_batch(2)
    F_I = F.normalize(net.see(normalise(batch.image)).pooled, dim=-1)
    hidden = F.relu(F_I @ net.meta_net.down.weight.T + net.meta_net.down.bias)
    pi = hidden @ net.meta_net.up.weight.T + net.meta_net.up.bias
    V, V_A = net.V + pi[:, None], net.hear(batch.audio)
    place = position or context + 1
    torch.testing.assert_close(rows[:, place : place + 1], V_A)
    torch.testing.assert_close(torch.cat([rows[:, 1:place], rows[:, place + 1 : -1]], dim=1), V)


def test_meta_net_has_a_sixteenfold_bottleneck() -> None:
    net = MetaNet(512, 512, 1)
    assert net.down.weight.shape == (32, 512)
    assert sum(p.numel() for p in net.parameters()) == 512 * 32 + 32 + 32 * 512 + 512


def test_gradient_reaches_context_meta_net_and_projection() -> None:
    net = network()
    batch = tiny_batch(3)
    image = normalise(batch.image)
    features = net.see(image)
    pairs = net.pairs(image, features, net.ask(features, net.hear(batch.audio)))
    (pairs.v_f.sum() + pairs.v_i.sum() + pairs.area.sum()).backward()
    for name, p in net.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, name
    assert net.V.grad.abs().sum() > 0
    assert net.meta_net.down.weight.grad.abs().sum() > 0


def test_conditioned_on_own_or_asked_picture() -> None:
    batch = tiny_batch(3)
    own, asked = network(conditioned="own"), network(conditioned="asked")
    features = own.see(normalise(batch.image))
    tokens = own.hear(batch.audio)
    A_own, A_asked = own.ask(features, tokens), asked.ask(features, tokens)
    assert A_own.shape == A_asked.shape == (3, 3, 64)
    diagonal = torch.arange(3)
    torch.testing.assert_close(A_own[diagonal, diagonal], A_asked[diagonal, diagonal])
    torch.testing.assert_close(A_own[0, 1], A_own[2, 1])  # the asked picture does not matter
    assert not torch.allclose(A_asked[0, 1], A_asked[2, 1])


def test_fusion_has_no_audio_token() -> None:
    net = network(variant="fusion")
    (rows,) = prompts(net)
    assert rows.shape[1] == 1 + 4 + 1
    batch = tiny_batch(2)
    features = net.see(normalise(batch.image))
    loud, quiet = net.answer(features, net.hear(batch.audio)), net.answer(features, net.hear(batch.audio * 0))
    assert not torch.allclose(loud, quiet)  # the sound still speaks, through the context


@pytest.mark.parametrize("ensemble", ["raw", "features"])
def test_ensemble_averages_every_position(ensemble: str) -> None:
    batch = tiny_batch(2)
    every = network(variant="ensemble", ensemble=ensemble)
    features = every.see(normalise(batch.image))
    A = every.answer(features, every.hear(batch.audio))
    singles = at_each_position(every, features, batch.audio)
    if ensemble == "features":
        singles = [F.normalize(x, dim=-1) for x in singles]
    torch.testing.assert_close(A, torch.stack(singles).mean(0))
    torch.testing.assert_close(A, every.ask(features, every.hear(batch.audio))[[0, 1], [0, 1]])  # in training, too


def test_ensemble_in_use_alone_trains_as_the_standard_one() -> None:
    batch = tiny_batch(2)
    late, standard = network(variant="ensemble_test"), network()
    assert late.state_dict().keys() == standard.state_dict().keys()
    features = late.see(normalise(batch.image))
    tokens = late.hear(batch.audio)
    torch.testing.assert_close(late.ask(features, tokens), standard.ask(features, tokens))
    singles = at_each_position(standard, features, batch.audio)
    torch.testing.assert_close(late.answer(features, tokens), torch.stack(singles).mean(0))


def at_each_position(net: SOUPLENetwork, features: ImageFeatures, audio: torch.Tensor) -> list[torch.Tensor]:
    """What the standard network with the same weights answers with the audio token at 1, ..., 5."""
    singles = []
    for p in range(1, 6):
        single = network(position=p)
        single.load_state_dict(net.state_dict())
        singles.append(single.answer(features, single.hear(audio)))
    return singles


def test_without_a_meta_net_no_picture_changes_the_context() -> None:
    net = network(emits="none")
    assert not any("meta_net" in k for k in net.state_dict())
    batch = tiny_batch(3)
    features, tokens = net.see(normalise(batch.image)), net.hear(batch.audio)
    A = net.ask(features, tokens)
    torch.testing.assert_close(A[0], A[2])
    (rows,) = prompts(net)
    torch.testing.assert_close(rows[:, 1:5], net.V.expand(2, -1, -1))
    A.sum().backward()
    assert net.V.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="emits: none"):
        network(emits="none", variant="fusion")


def test_all_options_of_acl_and_no_misspelt_one(tmp_path: Path) -> None:
    files = tiny_files(tmp_path)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SOUPLE, "model")

    def build(**given: object) -> SOUPLE:
        config = {"class_path": "avloc.methods.souple.SOUPLE", "init_args": {**files, **given}}
        return parser.instantiate_classes(parser.parse_object({"model": config})).model

    options = {"image_mask": "soft", "feature_mask": "hard", "one_noise": True, "phrase_template": "a photo of {}"}
    model = build(context=2, tokens=2, **options)
    assert [getattr(model.network, k) for k in list(options)[:3]] == ["soft", "hard", True]
    assert (model.network.V.shape[0], model.embed_phrases.template) == (2, "a photo of {}")
    for wrong in ("positon", "image_masks", "template"):
        with pytest.raises(ArgumentError, match=wrong):
            build(**{wrong: "hard"})
    with pytest.raises(ArgumentError, match="image_mask"):
        build(image_mask="hardest")


def test_is_rebuilt_from_its_checkpoint(tmp_path: Path) -> None:
    model = SOUPLE(context=2, emits="separate", one_noise=True, **tiny_files(tmp_path))  # type: ignore[arg-type]
    trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu", max_epochs=0)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    rebuilt = load_method(tmp_path / "it.ckpt", "cpu")
    assert isinstance(rebuilt, SOUPLE)
    assert rebuilt.network.one_noise
    torch.testing.assert_close(rebuilt.network.V, model.network.V)
    torch.testing.assert_close(rebuilt.network.meta_net.up.weight, model.network.meta_net.up.weight)


def test_another_context_changes_the_prompt_alone(tmp_path: Path) -> None:
    files = tiny_files(tmp_path)
    model = SOUPLE(**files).eval()  # type: ignore[arg-type]
    assert model.conditioned
    assert not SOUPLE(emits="none", **files).conditioned  # type: ignore[arg-type]
    batch, other = tiny_batch(2), tiny_batch(2, seed=5)
    with torch.no_grad():
        plain, same = model.localize(batch), model.localize(replace(batch, context=batch.image))
        changed = model.localize(replace(batch, context=other.image))
        net = model.network
        features = net.see(normalise(batch.image))
        A = net.answer(net.see(normalise(other.image)), net.hear(batch.audio))
        heatmap, confidence = net.locate(features, A[:, None], model.heatmap_size)
    torch.testing.assert_close(plain.heatmap, same.heatmap)
    torch.testing.assert_close(changed.heatmap, heatmap)
    torch.testing.assert_close(changed.confidence, confidence)
    assert not torch.equal(changed.confidence, plain.confidence)


def test_ensemble_of_logits_averages_maps() -> None:
    batch = tiny_batch(2)
    net = network(variant="ensemble", ensemble="logits")
    features = net.see(normalise(batch.image))
    A = net.answer(features, net.hear(batch.audio))
    assert A.shape == (2, 5, 64)
    M = net.mask_logits(features.reduced, A[:, None])
    singles = [net.av_grounder.decode(features.reduced, A[:, None, p]) for p in range(5)]
    torch.testing.assert_close(M, torch.stack(singles).mean(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("image_feature", ["pooled", "hidden", "patches"])
@pytest.mark.parametrize("emits", ["shared", "separate", "only"])
def test_options_train(image_feature: str, emits: str) -> None:
    net = network(image_feature=image_feature, emits=emits)
    batch = tiny_batch(2)
    features = net.see(normalise(batch.image))
    net.ask(features, net.hear(batch.audio)).sum().backward()
    assert net.meta_net.up.weight.grad.abs().sum() > 0
    assert (net.V is None) == (emits == "only")


def test_words_start_as_their_embeddings() -> None:
    net = network(start="words")
    ids = net.av_grounder.tokenize(["a photo of a"])[0, 1:-1]
    torch.testing.assert_close(net.V.detach(), net.av_grounder.embed_tokens(ids))


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not in 1\.\.5"):
        network(position=6)
    with pytest.raises(ValueError, match="context is 8"):
        network(start="words", context=8)
