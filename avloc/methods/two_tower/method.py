"""The two-tower family: one network, and one class for each paper's way of training it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from avloc.backbones.resnet import ObjectResNet, normalised
from avloc.backbones.vggish import VGGish
from avloc.frontends.spectrogram import LogSpectrogram, MelDecibels
from avloc.methods.base import Localizer
from avloc.methods.two_tower import losses
from avloc.methods.two_tower.checkpoints import load_official
from avloc.methods.two_tower.network import Design, TwoTowers, initialise, matching
from avloc.methods.two_tower.views import Masks, Transformation, crop_and_flip, neighbours
from avloc.metrics.extended import top_quarter
from avloc.metrics.maps import affine, minmax, resize
from avloc.types import AVBatch, InputSpec, Localization
from avloc.weights import load_into, locate, read_state

__all__ = ["EZVSL", "FNAC", "LVS", "SLAVC", "SSLTIE", "Alignment", "Scaling", "TwoTower", "Upsampling", "heat"]

Upsampling = Literal["bilinear_corners", "bilinear", "bicubic_corners", "bicubic"]
Scaling = Literal["minmax", "affine"]


def heat(S: Tensor, size: int, upsampling: Upsampling, scaling: Scaling = "minmax") -> Tensor:
    """Similarities as a map in [0, 1], or nearly.

    Args:
        S: ``[B, h, w]``; cosines for ``affine``.
        size: side of the map.
        upsampling: ``bilinear_corners`` in EZ-VSL's and FNAC's test, ``bicubic`` in their training's validation,
            ``bicubic_corners`` in SLAVC's test, ``bilinear`` (OpenCV's) in LVS and SSL-TIE. Bicubic maps overshoot a
            little.
        scaling: ``minmax`` of each map; ``affine`` is (cosine + 1) / 2, which keeps how similar the best place is.

    Returns:
        float32 ``[B, size, size]``.
    """
    mode: Literal["bilinear", "bicubic"] = "bicubic" if upsampling.startswith("bicubic") else "bilinear"
    maps = resize(S, (size, size), mode, align_corners=upsampling.endswith("corners"))
    return minmax(maps) if scaling == "minmax" else affine(maps, 1.0)


class TwoTower(Localizer):
    """What the members share. Not a method of its own.

    Args:
        checkpoint: weight source of a release's checkpoint of this member (``file:PATH``); None to train one.
        image_weights: weight source that the picture tower starts from: ``resnet18`` for ImageNet, ``random``. Not
            needed behind a checkpoint.
        tower: options of timm's ``resnet18`` for both towers, e.g. ``{channels: [8, 16, 32, 64], stem_width: 8}`` for
            tiny ones; None for ResNet-18.
        sound_tower: the same for the tower that hears alone; None for ``tower``.
        dim: width of the heads.
        dropout: of the picture's features before the heads, in training.
        masks: what training hides of a spectrogram.
        image_size: side of the picture in pixels.
        image_resize: see `InputSpec.resize`.
        train_scale: training pictures are resized to this multiple of the side and cropped; 246 / 224 in the releases.
        seconds: length of the sound; its middle is heard, and a shorter one repeated.
        hop: samples between the spectrogram's columns.
        heatmap_size: side of the heat map.
        upsampling: see `heat`.
        scaling: see `heat`; of the heat map. The confidence is `top_quarter` of the affine map in any case.
        channels_last: convolve with the channels innermost, the same values to rounding; widths must be multiples of 8.
            It about halves a step of the world's towers on a processor.
        training: options of `Localizer`.

    Raises:
        WeightError: a file is missing, damaged, would run code, or is of another member or size.
        ValueError: the sound is shorter than one window of the spectrogram, or ``channels_last`` with other widths.
    """

    design: Design = "one_head"
    # A rebuilt method is used, not trained on: its own checkpoint holds every tensor that these files would give.
    not_stored: ClassVar[tuple[str, ...]] = ("image_weights", "checkpoint")

    def __init__(
        self,
        checkpoint: str | None = None,
        image_weights: str = "random",
        tower: dict[str, Any] | None = None,
        sound_tower: dict[str, Any] | None = None,
        dim: int = 512,
        dropout: float = 0.0,
        masks: Masks = Masks(),  # noqa: B008  frozen
        image_size: int = 224,
        image_resize: Literal["squash", "crop"] = "squash",
        train_scale: float = 1.1,
        seconds: float = 3.0,
        hop: int = 238,
        heatmap_size: int = 224,
        upsampling: Upsampling = "bilinear_corners",
        scaling: Scaling = "minmax",
        channels_last: bool = False,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        self.input_spec = InputSpec(
            image_size=image_size,
            resize=image_resize,
            train_scale=train_scale,
            train_flip=0.5,
            seconds=seconds,
            window="centre",
            pad="tile",
        )
        self.masks, self.heatmap_size, self.upsampling, self.scaling = masks, heatmap_size, upsampling, scaling
        self.front_end = self.build_front_end(hop)
        if not self.front_end.frames(self.input_spec.samples):
            raise ValueError(
                f"{type(self).__name__}: {seconds:g} s of sound are shorter than one window of the spectrogram "
                f"({self.front_end.length / self.front_end.sample_rate:g} s). Set seconds to 1 or more."
            )
        self.network = TwoTowers(self.design, dim, tower, dropout, sound_tower)
        self.start(checkpoint, image_weights)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            self.put_channels_last()

    def put_channels_last(self) -> None:
        """Not before the weights are drawn: random numbers come in the order of memory."""
        widths = {m.out_channels for m in self.network.modules() if isinstance(m, nn.Conv2d)}
        if odd := sorted(w for w in widths if w % 8):
            raise ValueError(
                f"{type(self).__name__}: channels_last needs layers of multiples of 8 channels, but some have {odd}: "
                "oneDNN aborts the process there. Set channels_last to false, or choose wider layers."
            )
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def build_front_end(self, hop: int) -> LogSpectrogram | MelDecibels:
        return LogSpectrogram(hop=hop)

    def start(self, checkpoint: str | None, image_weights: str) -> None:
        """Initial weights: of a release, or as the releases draw them, with the picture tower's own file."""
        initialise(self.network)
        if checkpoint is not None:
            if (path := locate(checkpoint).path) is not None:
                load_official(self.network, path)
            return
        if (path := locate(image_weights).path) is not None:
            tower = self.network.imgnet
            counts = {k: v for k, v in tower.state_dict().items() if k.endswith("num_batches_tracked")}
            state = {k: v for k, v in read_state(path).items() if not k.startswith("fc.")}
            load_into(tower, counts | state, str(path))
        self.network.align_momentum()

    def look(self, batch: AVBatch) -> Tensor:
        """Normalised pictures ``[B, 3, H, W]``."""
        pixels = normalised(batch.image, (batch.image.shape[-2], batch.image.shape[-1]))
        return pixels.contiguous(memory_format=self.memory_format)

    def listen(self, batch: AVBatch) -> Tensor:
        """Spectrograms ``[B, 1, F, T]``, masked in training."""
        spectrogram = self.front_end(batch.audio.clamp(-1, 1))
        spectrogram = self.masks(spectrogram) if self.training else spectrogram
        return spectrogram.contiguous(memory_format=self.memory_format)

    def training_losses(self, batch: AVBatch) -> dict[str, Tensor]:
        """The objective's terms."""
        v, a = self.network(self.look(batch), self.listen(batch))
        with in_float32(v):
            return self.objective(v[0], a[0])  # type: ignore[operator, no-any-return]

    def answering(self) -> TwoTowers:
        """The network that answers."""
        return self.network

    def localize(self, batch: AVBatch) -> Localization:
        """One source a sample: the cosine of every place with the sound, averaged over heads."""
        v, a = self.answering()(self.look(batch), self.listen(batch))
        with in_float32(v):
            S = torch.stack([matching(*pair) for pair in zip(v, a, strict=True)]).mean(0)
            levels = heat(S, self.heatmap_size, self.upsampling, "affine")
            heatmap = minmax(levels) if self.scaling == "minmax" else levels.clamp(0, 1)
            return Localization(heatmap[:, None], top_quarter(levels).float()[:, None])


def in_float32(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)


class EZVSL(TwoTower):
    """EZ-VSL (Mo and Morgado: "Localizing Visual Sounds the Easy Way", ECCV 2022), and MarginNCE with a margin.

    Args:
        objective: temperature, margin, negatives.
        common: all other options of `TwoTower`.
    """

    def __init__(self, objective: losses.EZVSL = losses.EZVSL(), **common: Any) -> None:  # noqa: B008  frozen
        super().__init__(**common)
        self.objective = objective


class FNAC(TwoTower):
    """FNAC (Sun et al., CVPR 2023).

    Args:
        objective: temperature, weights of the three terms, negatives.
        warm_up: epochs that train with EZ-VSL's loss alone; 5 in the release's scripts.
        dropout: of the picture's features; 0.9 in the release.
        masks: the release hides up to 9 bands and 9 columns. Its stretches of time may lie partly outside, for it draws
            their start over the bands' number; ours lie inside.
        common: all other options of `TwoTower`.
    """

    def __init__(
        self,
        objective: losses.FNAC = losses.FNAC(),  # noqa: B008  frozen
        warm_up: int = 5,
        dropout: float = 0.9,
        masks: Masks = Masks(9, 9),  # noqa: B008  frozen
        **common: Any,
    ) -> None:
        super().__init__(dropout=dropout, masks=masks, **common)
        self.objective, self.warm_up = objective, warm_up

    def training_losses(self, batch: AVBatch) -> dict[str, Tensor]:
        """``infonce``, behind the warm-up ``fns_1``, ``tns`` and ``fns_2``, and their weighted sum ``loss``."""
        v, a = self.network(self.look(batch), self.listen(batch))
        with in_float32(v):
            return self.objective(v[0], a[0], warm_up=self.current_epoch < self.warm_up)


class SLAVC(TwoTower):
    """SLAVC (Mo and Morgado, NeurIPS 2022).

    Args:
        objective: temperature, reading of the second term, negatives.
        m_image: momentum of the picture tower's copy; 0.999 in the release's scripts.
        m_audio: of the sound tower's.
        dropout: of the picture's features, drawn anew for the momentum copy; 0.9 in the release's scripts.
        answers: whether the online towers answer (the release's test scripts) or the momentum copy (its training's
            validation).
        upsampling: see `heat`.
        common: all other options of `TwoTower`.
    """

    design = "two_heads"

    def __init__(
        self,
        objective: losses.SLAVC = losses.SLAVC(),  # noqa: B008  frozen
        m_image: float = 0.999,
        m_audio: float = 0.999,
        dropout: float = 0.9,
        answers: Literal["online", "momentum"] = "online",
        upsampling: Upsampling = "bicubic_corners",
        **common: Any,
    ) -> None:
        super().__init__(dropout=dropout, upsampling=upsampling, **common)
        self.objective, self.m_image, self.m_audio, self.answers = objective, m_image, m_audio, answers

    def training_losses(self, batch: AVBatch) -> dict[str, Tensor]:
        """``image_to_audio``, ``audio_to_image`` and their sum ``loss``; moves the momentum copy."""
        image, spectrogram = self.look(batch), self.listen(batch)
        online = self.network(image, spectrogram)
        self.network.follow(self.m_image, self.m_audio)
        assert self.network.momentum is not None
        with torch.no_grad():
            target = self.network.momentum(image, spectrogram)
        with in_float32(online[0]):
            return self.objective(*online, *target)

    def answering(self) -> TwoTowers:
        momentum = self.network.momentum
        return self.network if self.answers == "online" or momentum is None else momentum


class LVS(TwoTower):
    """LVS (Chen et al., CVPR 2021). Its training code was never published.

    Args:
        objective: trimap, temperature, diagonal, negatives.
        seconds: 3 in the article's training; the release's test hears 10.
        image_resize: the release's test cuts the centre out.
        upsampling: see `heat`.
        common: all other options of `TwoTower`.
    """

    design = "headless"

    def __init__(
        self,
        objective: losses.LVS = losses.LVS(),  # noqa: B008  frozen
        seconds: float = 10.0,
        image_resize: Literal["squash", "crop"] = "crop",
        upsampling: Upsampling = "bilinear",
        **common: Any,
    ) -> None:
        super().__init__(seconds=seconds, image_resize=image_resize, upsampling=upsampling, **common)
        self.objective = objective


class SSLTIE(TwoTower):
    """SSL-TIE (Liu et al., ACM MM 2022). It hears decibels of a mel spectrogram.

    The release hears each batch of sounds twice, with equal features; here once, so that BatchNorm's running statistics
    of the sound tower move once a step.

    Args:
        objective: LVS's contrast, weight and distance of the equivariance.
        rotation: most degrees by which a picture is turned; 30 in the release's scripts.
        masks: the release hides up to 35 bands and 180 columns of four spectrograms in five.
        seconds: 10 in the release, whose VGGSound files of 3 s are repeated.
        hop: samples between the spectrogram's columns.
        image_resize: the release cuts the centre out.
        upsampling: see `heat`.
        common: all other options of `TwoTower`.
    """

    design = "headless"

    def __init__(
        self,
        objective: losses.SSLTIE = losses.SSLTIE(),  # noqa: B008  frozen
        rotation: int = 30,
        masks: Masks = Masks(35, 180, -100.0, 0.8),  # noqa: B008  frozen
        seconds: float = 10.0,
        hop: int = 239,
        image_resize: Literal["squash", "crop"] = "crop",
        upsampling: Upsampling = "bilinear",
        **common: Any,
    ) -> None:
        super().__init__(
            masks=masks, seconds=seconds, hop=hop, image_resize=image_resize, upsampling=upsampling, **common
        )
        self.objective, self.rotation = objective, rotation

    def build_front_end(self, hop: int) -> MelDecibels:
        return MelDecibels(hop=hop)

    def training_losses(self, batch: AVBatch) -> dict[str, Tensor]:
        """``contrast``, ``contrast_transformed``, ``equivariance`` and their weighted sum ``loss``."""
        image, spectrogram = self.look(batch), self.listen(batch)
        transform = Transformation.draw(len(batch), image.device, self.rotation)
        v, a = self.network(image, spectrogram)
        v_transformed = self.network.see(transform(image))
        with in_float32(v):
            wanted = transform(matching(v[0], a[0]))
            return self.objective(v[0], v_transformed[0], a[0], a[0], wanted)


class Alignment(TwoTower):
    """Alignment (Senocak et al., ICCV 2023). Its training code was never published.

    [choice] Neighbours are looked for among the batch, so a batch should be large; the article searches the training
    set. Views are random crops with a flip, and masked spectrograms.

    Args:
        objective: both similarities.
        neighbours_image: weight source of the ResNet-18 whose features say which pictures are alike; None for no
            neighbours by sight.
        neighbours_audio: weight source of the VGGish that says which sounds are alike; None for none by hearing.
        k: a neighbour is drawn from the k nearest.
        views: train with an augmented picture and an augmented sound of each sample.
        view_masks: what the sound's view hides.
        hop: 159 in the release's test.
        image_resize: see `InputSpec.resize`.
        upsampling: see `heat`.
        common: all other options of `TwoTower`.
    """

    design = "headless"
    not_stored: ClassVar[tuple[str, ...]] = (
        *TwoTower.not_stored,
        "neighbours_image",
        "neighbours_audio",
    )  # asked in training alone

    def __init__(
        self,
        objective: losses.Alignment = losses.Alignment(),  # noqa: B008  frozen
        neighbours_image: str | None = None,
        neighbours_audio: str | None = None,
        k: int = 1,
        views: bool = True,
        view_masks: Masks = Masks(32, 32, -1.343),  # noqa: B008  frozen
        hop: int = 159,
        image_resize: Literal["squash", "crop"] = "squash",
        upsampling: Upsampling = "bilinear",
        **common: Any,
    ) -> None:
        super().__init__(hop=hop, image_resize=image_resize, upsampling=upsampling, **common)
        self.objective, self.k, self.views, self.view_masks = objective, k, views, view_masks
        self.sees_alike = None if neighbours_image is None else ObjectResNet.from_source(neighbours_image)
        self.hears_alike = None if neighbours_audio is None else VGGish.from_source(neighbours_audio)
        alike = {"neighbours_image": neighbours_image, "neighbours_audio": neighbours_audio}
        self.frozen_files = {name: locate(source) for name, source in alike.items() if source is not None}

    def training_losses(self, batch: AVBatch) -> dict[str, Tensor]:
        """``localise``, ``align`` and their weighted sum ``loss``."""
        image, spectrogram = self.look(batch), self.listen(batch)
        images, sounds = [image], [spectrogram]
        if self.views:
            images.append(crop_and_flip(image))
            sounds.append(self.view_masks(spectrogram))
        seen = self.network.see(torch.cat(images))[0].split(len(batch))
        heard = self.network.hear(torch.cat(sounds))[0].split(len(batch))
        own = torch.arange(len(batch), device=image.device)
        pictures, voices = ([losses.Views(x, own) for x in every] for every in (seen, heard))
        with in_float32(image):
            if (near := self.alike_to_see(image)) is not None:
                pictures.append(losses.Views(seen[0][near], near))
            if (near := self.alike_to_hear(batch.audio)) is not None:
                voices.append(losses.Views(heard[0][near], near))
            return self.objective(pictures, voices)

    @torch.no_grad()
    def alike_to_see(self, image: Tensor) -> Tensor | None:
        """A neighbour by sight of each sample ``[B]``; None where nobody asks for them."""
        if self.sees_alike is None:
            return None
        features: Tensor = self.sees_alike.resnet.forward_features(image)  # type: ignore[operator]
        return neighbours(features.mean((-2, -1)), self.k)

    @torch.no_grad()
    def alike_to_hear(self, audio: Tensor) -> Tensor | None:
        """A neighbour by hearing of each sample ``[B]``; None where nobody asks for them."""
        return None if self.hears_alike is None else neighbours(self.hears_alike(audio).mean(1), self.k)
