"""ACL-SSL (Park, Senocak, Chung: "Can CLIP Help Sound Source Localization?", WACV 2024, and its journal extension)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from avloc.backbones.beats import BEATs
from avloc.backbones.clipseg import CLIPSeg, normalise
from avloc.data.phrases import PhraseError
from avloc.methods.acl.losses import Objective
from avloc.methods.acl.network import ACLNetwork, FeatureMask, Grounding, ImageMask
from avloc.methods.acl.phrases import PhraseEmbeddings, phrase_ids
from avloc.methods.base import IDENTITY, Localizer
from avloc.types import AVBatch, InputSpec, Localization
from avloc.weights import WeightError, load_into, locate, read_state

__all__ = ["ACL"]

LEARNED = ("audio_proj", "masker_i")


class ACL(Localizer):
    """Audio as a token of CLIP's text tower, CLIPSeg as the grounder, contrastive losses. Trains 7.28 M parameters.

    Args:
        clipseg: weight source of the grounder.
        beats: weight source of the audio tower.
        audio_proj: weight source of a trained projection and image mask to start from: the authors' checkpoint
            (``{"audio_proj", "masker_i"}``), or one of `avloc fit`, of ACL-SSL or SOUPLE (``file:PATH``). What was
            started so is rebuilt from its own checkpoint alone.
        objective: loss weights, priors, and the paper's or the released reading of each term. With a ``lambda_c`` above
            0, training is guided by the object phrases that ``data.phrases`` shows ("AV + LLM alignment").
        tokens: audio tokens of a sound: 1, 2, 4 or 8 (table 11).
        template: words around the audio token (table 12); "{}" alone for no words.
        image_mask: see `Grounding` (table 13).
        feature_mask: see `Grounding` (table 13).
        one_noise: see `Grounding`.
        masker: initial w and b of the image mask.
        feature_layers: BEATs layers, counted from 1, whose outputs are heard.
        layer_drop: let BEATs skip layers in training, as the released script does by accident.
        image_size: side of the picture in pixels.
        seconds: length of the sound.
        train_scale: training pictures are resized to this multiple of the side and cropped.
        heatmap_size: side of the heat map; every published evaluator asks for 224.
        chunk: pictures whose pairs go through the decoder together.
        recompute: recompute the decoder in backward instead of keeping its activations.
        phrase_template: words around an object phrase, e.g. "A photo of a {}"; the bare phrase by default.
        compile_towers: `torch.compile` the frozen vision tower.
        training: options of `Localizer`.
    """

    network: ACLNetwork
    not_stored: ClassVar[tuple[str, ...]] = ("audio_proj",)  # a resumed run gets what it started from from the YAML

    def __init__(
        self,
        clipseg: str = "hf:CIDAS/clipseg-rd64-refined",
        beats: str = "beats",
        audio_proj: str | None = None,
        objective: Objective = Objective(),  # noqa: B008  frozen
        tokens: int = 1,
        template: str = "A photo of {}",
        image_mask: ImageMask = "hard",
        feature_mask: FeatureMask = "feature",
        one_noise: bool = False,
        masker: tuple[float, float] = (10.0, 14.0),
        feature_layers: tuple[int, ...] = (4, 8, 12),
        layer_drop: bool = False,
        image_size: int = 352,
        seconds: float = 10.0,
        train_scale: float = 1.1,
        heatmap_size: int = 224,
        chunk: int = 8,
        recompute: bool = False,
        phrase_template: str = "{}",
        compile_towers: bool = False,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.input_spec = InputSpec(
            image_size=image_size,
            train_scale=train_scale,
            train_flip=0.5,
            seconds=seconds,
            channels="left_then_right",
        )
        self.objective, self.heatmap_size = objective, heatmap_size
        grounder, ears = CLIPSeg.from_source(clipseg), BEATs.from_source(beats, feature_layers, layer_drop)
        self.frozen_files = {"clipseg": grounder.file, "beats": locate(beats)}
        grounding = Grounding(tokens, template, image_mask, feature_mask, one_noise, masker, chunk, recompute)
        self.network = self.build_network(grounder, ears, grounding)
        self.embed_phrases = PhraseEmbeddings(grounder, phrase_template)
        if audio_proj is not None:
            self.start_from_projection(audio_proj)
        if compile_towers:
            grounder.compile_towers()

    def build_network(self, grounder: CLIPSeg, ears: BEATs, grounding: Grounding) -> ACLNetwork:
        return ACLNetwork(grounder, ears, grounding)

    def start_from_projection(self, source: str) -> None:
        """Take over the audio projection and the image mask of a checkpoint, the authors' or our own.

        Raises:
            WeightError: the file is missing, holds another model, or parts of another size.
            CheckpointError: it was trained on top of other frozen weights.
        """
        file = locate(source)
        assert file.path is not None, "a checkpoint is a file"
        content = read_state(Path(file.path))
        if IDENTITY in content:
            self.check_frozen(content)
            stored = content["state_dict"]
            state = {part: below(stored, f"network.{part}.") for part in LEARNED}
            state = {part: tensors for part, tensors in state.items() if tensors}
        else:
            state = content
        if not set(LEARNED) <= state.keys():
            raise WeightError(
                f"{file.path} is no ACL checkpoint: it has {sorted(content)[:4]}, not audio_proj and masker_i."
            )
        for part in LEARNED:
            load_into(getattr(self.network, part), state[part], str(file.path))

    def training_losses(self, batch: AVBatch) -> dict[str, Tensor]:
        """``acl_i``, ``acl_f``, ``area_reg``, with phrases ``acl_c``, and their weighted sum ``loss``.

        Raises:
            PhraseError: the objective needs phrases, and the batch brings none.
        """
        image = normalise(batch.image)
        features = self.network.see(image)
        tokens = self.network.hear(batch.audio)
        A = self.network.ask(features, tokens, gathered=self.objective.negatives == "gathered")
        pairs = self.network.pairs(image, features, A, image_level=self.objective.lambda_i != 0)
        if self.objective.lambda_c:
            if not batch.phrase:
                raise PhraseError(
                    f"objective.lambda_c {self.objective.lambda_c:g} needs object phrases, but training shows none. "
                    "Set data.phrases to both, audio, image or a table's path; or lambda_c to 0."
                )
            pairs.C, pairs.phrase = self.embed_phrases(batch.phrase), phrase_ids(batch.phrase).to(batch.device)
        return self.objective(pairs)

    def embed_sound(self, batch: AVBatch) -> Tensor:
        """A ``[B, D]`` in CLIP's text space, not normalised: what each sound says in its prompt (`heard_as`)."""
        A = self.network.answer(self.network.see(normalise(batch.image)), self.network.hear(batch.audio))
        return self.network.embedding(A[:, None])[:, 0]

    def localize(self, batch: AVBatch) -> Localization:
        """One source a sample; the confidence is the cosine of v_f and A, as the release scores the extended sets.

        Where the batch brings another context, the prompt is conditioned on it, and the picture is asked as before.
        """
        features = self.network.see(normalise(batch.image))
        context = None if batch.context is None else self.network.see(normalise(batch.context))
        A = self.network.answer(context or features, self.network.hear(batch.audio))
        heatmap, confidence = self.network.locate(features, A[:, None], self.heatmap_size)
        return Localization(heatmap, confidence, said=self.network.embedding(A[:, None])[:, 0])


def below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name begins with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
