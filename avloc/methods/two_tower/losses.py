"""The objectives of the two-tower family, each as its release computes it; options name the other readings. Torch only.

Symbols as in `avloc.methods.two_tower.network`: v_n(p) and a_m unit features, S_nm(p) their cosine, tau a temperature,
B the batch, CE the mean cross-entropy over rows with the diagonal as target.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from avloc.methods.losses import gather_rows, rank_and_world, symmetric_infonce
from avloc.methods.two_tower.network import matching, similarity

__all__ = [
    "EZVSL",
    "FNAC",
    "LVS",
    "SLAVC",
    "SSLTIE",
    "Alignment",
    "Negatives",
    "Views",
    "cross_entropy",
    "gathered",
]

Negatives = Literal["local", "gathered"]


def gathered(negatives: Negatives, *features: Tensor) -> list[Tensor]:
    """Features ``[B, ...]`` of this process, or of all of them in the order of ranks, with gradient."""
    return [gather_rows(x) if negatives == "gathered" else x for x in features]


def cross_entropy(logits: Tensor) -> Tensor:
    """CE: mean over rows of ``[B, B]``, whose targets are the diagonal."""
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


@dataclass(frozen=True)
class EZVSL:
    """EZ-VSL (Mo and Morgado, ECCV 2022): L = CE(z) + CE(z^T) with z_nm = max_p S_nm(p) / tau. With a margin, MarginNCE
    (Park, Senocak, Chung, ICASSP 2023).

    Args:
        tau: temperature.
        margin: subtracted from the cosines of the matching pairs before they are divided by tau, in both directions; 0
            is EZ-VSL. MarginNCE's is negative: a less strict boundary. No code of it is public: that the margin stands
            before the division, and in both directions, is our reading.
        negatives: other samples of this process (``local``, released) or of all processes (``gathered``).
    """

    tau: float = 0.03
    margin: float = 0.0
    negatives: Negatives = "local"

    def __call__(self, v: Tensor, a: Tensor) -> dict[str, Tensor]:
        """``image_to_audio``, ``audio_to_image`` and their sum ``loss``, of v ``[B, D, h, w]`` and a ``[B, D]``."""
        z = self.logits(*gathered(self.negatives, v, a))
        rows, columns = cross_entropy(z), cross_entropy(z.T)
        return {"image_to_audio": rows, "audio_to_image": columns, "loss": rows + columns}

    def logits(self, v: Tensor, a: Tensor) -> Tensor:
        """z ``[B, B]``."""
        return self.scaled(similarity(v, a).amax((-2, -1)))

    def scaled(self, s: Tensor) -> Tensor:
        """Cosines ``[B, B]`` to logits."""
        if self.margin:
            s = s - self.margin * torch.eye(len(s), device=s.device)
        return s / self.tau


@dataclass(frozen=True)
class FNAC:
    """FNAC (Sun et al.: "Learning Audio-Visual Source Localization via False Negative Aware Contrastive Learning", CVPR
    2023): EZ-VSL's loss and three differences of B x B affinities, P being the softmax over columns and |.| the mean
    absolute difference:

    FNS-1 |P(a a^T / tau) - P(z)|, TNS |P(a a^T / tau) - P(f f^T / tau)|, FNS-2 |P(u u^T / tau) - P(z)|

    with u = mean_p v(p), not normalised again, and the foreground f = mean_p v(p) [map(p) > threshold], over all
    places, where map is S_nn min-maxed. Nothing is detached.

    Args:
        tau: temperature.
        fns_1: weight of FNS-1, which pulls P(z) to the sounds' affinity.
        tns: weight of TNS.
        fns_2: weight of FNS-2, which pulls P(z) to the pictures' affinity.
        threshold: of the foreground, exceeded strictly.
        negatives: see `EZVSL`.
    """

    tau: float = 0.03
    fns_1: float = 100.0
    tns: float = 100.0
    fns_2: float = 100.0
    threshold: float = 0.6
    negatives: Negatives = "local"

    def __call__(self, v: Tensor, a: Tensor, warm_up: bool = False) -> dict[str, Tensor]:
        """``infonce``, ``fns_1``, ``tns``, ``fns_2`` and their weighted sum ``loss``; ``infonce`` alone in the
        warm-up."""
        v, a = gathered(self.negatives, v, a)
        z = EZVSL(self.tau).logits(v, a)
        terms = {"infonce": cross_entropy(z) + cross_entropy(z.T)}
        if warm_up:
            return terms | {"loss": terms["infonce"]}
        f, u = self.foreground(v, a), v.mean((-2, -1))
        pairs, sounds, pictures, fore = (
            x.softmax(1) for x in (z, self.affinity(a), self.affinity(u), self.affinity(f))
        )
        terms |= {
            "fns_1": (sounds - pairs).abs().mean(),
            "tns": (sounds - fore).abs().mean(),
            "fns_2": (pictures - pairs).abs().mean(),
        }
        weights = {"infonce": 1.0, "fns_1": self.fns_1, "tns": self.tns, "fns_2": self.fns_2}
        return terms | {"loss": torch.stack([weights[name] * term for name, term in terms.items()]).sum()}

    def affinity(self, x: Tensor) -> Tensor:
        return x @ x.T / self.tau

    def foreground(self, v: Tensor, a: Tensor) -> Tensor:
        """f ``[B, D]``."""
        S = matching(v, a) / self.tau
        low, high = S.amin((-2, -1), keepdim=True), S.amax((-2, -1), keepdim=True)
        mask = (S - low) / (high - low + 1e-5) > self.threshold
        return (v * mask[:, None]).mean((-2, -1))


@dataclass(frozen=True)
class SLAVC:
    """SLAVC (Mo and Morgado: "A Closer Look at Weakly-Supervised Audio-Visual Source Localization", NeurIPS 2022).

    Head 1 says which sound, head 2 which place:
    I_nm = log sum_p softmax_m(S1_nm(p) / tau) softmax_p(S2_nm(p) / tau), of online pictures and momentum sounds; J_nm
    the same of momentum pictures and online sounds. L = CE(J) + CE(I), cross-entropies of logarithms that are
    normalised over m already.

    Args:
        tau: temperature.
        j: which sample each row of J asks for. ``audio_given_image`` (released): both terms classify sounds given a
            picture. ``image_given_audio``: J is normalised over pictures and transposed, as its name suggests.
        negatives: see `EZVSL`.
    """

    tau: float = 0.03
    j: Literal["audio_given_image", "image_given_audio"] = "audio_given_image"
    negatives: Negatives = "local"

    def __call__(self, v: Tensor, a: Tensor, v_target: Tensor, a_target: Tensor) -> dict[str, Tensor]:
        """``image_to_audio`` CE(I), ``audio_to_image`` CE(J), and their sum ``loss``.

        Args:
            v: online features of both heads ``[2, B, D, h, w]``.
            a: ``[2, B, D]``.
            v_target, a_target: those of the momentum copy, without gradient.
        """
        v, a, v_target, a_target = (
            x.transpose(0, 1)
            for x in gathered(self.negatives, *(x.transpose(0, 1) for x in (v, a, v_target, a_target)))
        )
        i, j = cross_entropy(self.logits(v, a_target)), cross_entropy(self.second(v_target, a))
        return {"image_to_audio": i, "audio_to_image": j, "loss": j + i}

    def second(self, v: Tensor, a: Tensor) -> Tensor:
        """J ``[B, B]``."""
        return self.logits(v, a) if self.j == "audio_given_image" else self.logits(v, a, over=0).T

    def logits(self, v: Tensor, a: Tensor, over: int = 1) -> Tensor:
        """I ``[B, B]``, rows pictures, columns sounds; head 1 is normalised over the sounds (1) or the pictures (0)."""
        which = (similarity(v[0], a[0]) / self.tau).flatten(2).log_softmax(over)
        where = (similarity(v[1], a[1]) / self.tau).flatten(2).log_softmax(2)
        return (which + where).logsumexp(2)


@dataclass(frozen=True)
class LVS:
    """LVS (Chen et al.: "Localizing Visual Sounds the Hard Way", CVPR 2021): a soft trimap of each picture's own map.

    With pos = sigmoid((S_nn - epsilon_p) / tau), neg = 1 - sigmoid((S_nn - epsilon_n) / tau) and pool(w, x) = sum_p w x
    / sum_p w, row n of the logits is [pool(pos, S_nn), pool(pos_nm, S_nm) of all m, pool(neg, S_nn)] / temperature, and
    the first column the target. Gradients go through the weights.

    Args:
        epsilon_p: cosine above which a place is positive.
        epsilon_n: cosine below which it is negative; between them it is neither.
        tau: steepness of the trimap.
        temperature: of the logits.
        trimap: False for neg = 1 - pos.
        hard_negatives: the last column, the own picture's background.
        diagonal: what stands at m = n among the negatives. ``scaled`` (released): the positive times -99, a small
            logit for the released towers, whose cosines are not negative; ``masked``: nothing.
        negatives: see `EZVSL`.
    """

    epsilon_p: float = 0.65
    epsilon_n: float = 0.4
    tau: float = 0.03
    temperature: float = 0.07
    trimap: bool = True
    hard_negatives: bool = True
    diagonal: Literal["scaled", "masked"] = "scaled"
    negatives: Negatives = "local"

    def __call__(self, v: Tensor, a: Tensor) -> dict[str, Tensor]:
        """``loss``, of v ``[B, D, h, w]`` and a ``[B, D]``."""
        logits = self.logits(*gathered(self.negatives, v, a))
        return {"loss": F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))}

    def weights(self, S: Tensor) -> tuple[Tensor, Tensor]:
        """pos and neg of cosines, of any shape."""
        pos = ((S - self.epsilon_p) / self.tau).sigmoid()
        # 1 - sigmoid(x) as sigmoid(-x): a map that is positive throughout keeps weights to divide by.
        return pos, (((self.epsilon_n if self.trimap else self.epsilon_p) - S) / self.tau).sigmoid()

    def logits(self, v: Tensor, a: Tensor) -> Tensor:
        """``[B, B + 2]``, ``[B, B + 1]`` without hard negatives."""
        S = similarity(v, a)
        own = S.diagonal().movedim(-1, 0)  # [B, h, w]
        pos, neg = self.weights(own)
        others = pooled(self.weights(S)[0], S)
        same = torch.eye(len(S), dtype=torch.bool, device=S.device)
        others = others.masked_fill(same, -torch.inf) if self.diagonal == "masked" else others * (1 - 100.0 * same)
        columns = [pooled(pos, own)[:, None], others]
        if self.hard_negatives:
            columns.append(pooled(neg, own)[:, None])
        return torch.cat(columns, 1) / self.temperature


def pooled(w: Tensor, x: Tensor) -> Tensor:
    """sum_p w x / sum_p w over the last two dimensions."""
    return (w * x).sum((-2, -1)) / w.sum((-2, -1))


@dataclass(frozen=True)
class SSLTIE:
    """SSL-TIE (Liu et al.: "Exploiting Transformation Invariance and Equivariance for Self-supervised Sound
    Localisation", ACM MM 2022): L = (LVS of the pictures + LVS of their transformed copies, with the same sounds) / 2 +
    weight * distance(map of the transformed picture, transformed map of the picture).

    Args:
        lvs: the contrast.
        weight: of the equivariance.
        distance: ``mse`` or ``l1``, means over all places.
        detach: keep gradients out of the picture's own map; the release lets them into both.
    """

    lvs: LVS = LVS()
    weight: float = 1.0
    distance: Literal["mse", "l1"] = "mse"
    detach: bool = False

    def __call__(
        self, v: Tensor, v_transformed: Tensor, a: Tensor, a_transformed: Tensor, transformed_map: Tensor
    ) -> dict[str, Tensor]:
        """``contrast``, ``contrast_transformed``, ``equivariance`` and their weighted sum ``loss``.

        Args:
            v: features of the pictures ``[B, D, h, w]``.
            v_transformed: of the transformed ones ``[B, D, h', w']``.
            a: features of the sounds ``[B, D]`` in the first pass, a_transformed in the second.
            transformed_map: S_nn of the pictures under the same transformation ``[B, h', w']``.
        """
        contrast = self.lvs(v, a)["loss"]
        contrast_transformed = self.lvs(v_transformed, a_transformed)["loss"]
        wanted = transformed_map.detach() if self.detach else transformed_map
        distance = F.mse_loss if self.distance == "mse" else F.l1_loss
        equivariance = distance(matching(v_transformed, a_transformed), wanted)
        return {
            "contrast": contrast,
            "contrast_transformed": contrast_transformed,
            "equivariance": equivariance,
            "loss": (contrast + contrast_transformed) / 2 + self.weight * equivariance,
        }


@dataclass
class Views:
    """What stands for a modality of sample n in one of Alignment's pairs.

    Attributes:
        features: v ``[B, D, h, w]`` or a ``[B, D]``.
        origin: int64 ``[B]``, whose features they are: n itself, or its neighbour.
    """

    features: Tensor
    origin: Tensor


@dataclass(frozen=True)
class Alignment:
    """Alignment (Senocak et al.: "Sound Source Localization is All about Cross-Modal Alignment", ICCV 2023). Its
    training code was never published.

    The article tells: two similarities trained together, s_L that localises and s_A that aligns the modalities as
    wholes; several positives of a sample, its augmented views and its nearest neighbours in features of pretrained
    encoders. Every pair of a picture's and a sound's view gives an InfoNCE on each similarity, and L is their mean over
    the pairs.

    [choice] s_L is LVS's positive pooling of S_nm, s_A = unit(mean_p v_n(p)) . a_m. Both directions are averaged. In a
    pair with a neighbour's feature, the sample that the feature comes from is no negative, for it is a true pair.

    Args:
        epsilon: cosine above which a place counts in s_L; None pools the maximum.
        steepness: of that count.
        tau_l: temperature of s_L.
        tau_a: temperature of s_A.
        localise: weight of s_L's terms.
        align: weight of s_A's terms.
        negatives: see `EZVSL`.
    """

    epsilon: float | None = 0.65
    steepness: float = 0.03
    tau_l: float = 0.07
    tau_a: float = 0.07
    localise: float = 1.0
    align: float = 1.0
    negatives: Negatives = "local"

    def __call__(self, pictures: list[Views], sounds: list[Views]) -> dict[str, Tensor]:
        """``localise``, ``align`` (means over all pairs of views) and their weighted sum ``loss``."""
        pictures, sounds = ([self.everywhere(view) for view in views] for views in (pictures, sounds))
        localise, align = [], []
        for seen, heard in product(pictures, sounds):
            v, a, same = seen.features, heard.features, of_one_clip(seen.origin, heard.origin)
            localise.append(symmetric_infonce(masked(self.localising(v, a) / self.tau_l, same)))
            align.append(symmetric_infonce(masked(F.normalize(v.mean((-2, -1)), dim=1) @ a.T / self.tau_a, same)))
        terms = {"localise": torch.stack(localise).mean(), "align": torch.stack(align).mean()}
        return terms | {"loss": self.localise * terms["localise"] + self.align * terms["align"]}

    def everywhere(self, view: Views) -> Views:
        """The view of this process's samples, or of all processes'."""
        if self.negatives == "local":
            return view
        first = rank_and_world()[0] * len(view.origin)
        return Views(gather_rows(view.features), gather_rows(view.origin + first))

    def localising(self, v: Tensor, a: Tensor) -> Tensor:
        """s_L ``[B, B]``."""
        S = similarity(v, a)
        if self.epsilon is None:
            return S.amax((-2, -1))
        return pooled(((S - self.epsilon) / self.steepness).sigmoid(), S)


def of_one_clip(seen: Tensor, heard: Tensor) -> Tensor:
    """bool ``[B, B]``: pairs whose features come from one clip, or of which one stands for the clip of the other."""
    own = torch.arange(len(seen), device=seen.device)
    return (seen[:, None] == heard) | (seen[:, None] == own) | (own[:, None] == heard)


def masked(logits: Tensor, same: Tensor) -> Tensor:
    """Logits without what is no negative; the diagonal stays."""
    return logits.masked_fill(same & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device), -torch.inf)


torch.serialization.add_safe_globals([Alignment, EZVSL, FNAC, LVS, SLAVC, SSLTIE])
