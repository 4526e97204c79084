"""Contrastive representation distillation: find an image's own embedding among those of other classes."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.check import integer, number
from kd.data.keyed import below, draws_by, epoch_key, mix
from kd.errors import ConfigError
from kd.losses._gather import gathered
from kd.losses._numeric import full_precision, outside_autocast
from kd.losses.term import FeatureTerm, Layers, Setting
from kd.types import Batch, Output


def contrastive_loss(
    student: Tensor,
    teacher: Tensor,
    candidates: Tensor,
    *,
    temperature: float = 0.07,
    log_normalizer: Tensor | None = None,
) -> Tensor:
    """Noise-contrastive loss of one direction, `-mean_b [log h(b, 0) + sum_k log(1 - h(b, k))]`, k = 1 ... K.

    `h(b, k) = p / (p + K / M)` is the probability that candidate k of image b is the image's own, with
    `p = exp(<student_b, teacher_c(b,k)> / T) / Z`. Tian, Krishnan and Isola 2020 (1910.10699), equations 10, 18 and 19.
    Z, which the paper's h does not have, is that of the authors' code and of Wu et al. 2018 (1805.01978): M times the
    mean of exp(.) over a batch's candidates. It makes p a probability over the memory's M rows, of which noise gives
    each 1 / M. Unlike that code, the logarithms are exact: it adds 1e-7 to both denominators.

    The other direction swaps the networks: the teacher's embedding against a memory of the student's.

    Args:
        student: (B, D), the embeddings that are trained, of length 1 in the method.
        teacher: (M, D), the memory of the other network's embeddings; gets no gradient.
        candidates: int64 (B, 1 + K), rows of the memory: the image's own first, then K negatives.
        temperature: T > 0.
        log_normalizer: log Z; None: that of this batch.

    Raises:
        ConfigError: a shape does not fit, or `temperature` is not in its range.
    """
    scores = candidate_scores(student, teacher, candidates, temperature=temperature)
    if log_normalizer is None:
        log_normalizer = estimated_log_normalizer(scores, len(teacher))
    return noise_contrastive_loss(scores - log_normalizer, len(teacher))


@outside_autocast
def candidate_scores(student: Tensor, teacher: Tensor, candidates: Tensor, *, temperature: float = 0.07) -> Tensor:
    """Return `<student_b, teacher_c(b,k)> / T`, (B, 1 + K), for arguments like those of `contrastive_loss`.

    One matrix product with the whole memory (B x M) and a selection from it: with thousands of candidates an image,
    this moves far less than selecting (B, 1 + K, D) first, and gives the same values.
    """
    temperature = number("temperature", temperature, above=0.0)
    if student.ndim != 2 or teacher.ndim != 2 or student.shape[1] != teacher.shape[1]:
        raise ConfigError(
            "Expected embeddings (batch, D) and a memory (rows, D), "
            f"but got {tuple(student.shape)} and {tuple(teacher.shape)}."
        )
    if candidates.ndim != 2 or len(candidates) != len(student) or candidates.shape[1] < 2:
        raise ConfigError(
            f"Expected the candidates of {len(student)} images (batch, 1 + negatives), one negative at least, "
            f"but got {tuple(candidates.shape)}."
        )
    products = full_precision(student) @ full_precision(teacher.detach()).T
    return products.gather(1, candidates) / temperature


def estimated_log_normalizer(scores: Tensor, rows: int) -> Tensor:
    """Return `log(M mean exp(scores))`, detached: the normaliser's estimate from one batch's candidates."""
    return scores.detach().logsumexp((0, 1)) - math.log(scores.numel()) + math.log(rows)


def noise_contrastive_loss(log_probabilities: Tensor, rows: int) -> Tensor:
    """Return `contrastive_loss` from log p of each candidate, (B, 1 + K), and the number of the memory's rows."""
    negatives = log_probabilities.shape[1] - 1
    log_odds = full_precision(log_probabilities) - math.log(negatives / rows)  # of h / (1 - h)
    return (F.softplus(-log_odds[:, 0]) + F.softplus(log_odds[:, 1:]).sum(1)).mean()


class Memory(nn.Module):
    """The latest embedding of every image, (M, D), and the normaliser of the scores with them."""

    rows: Tensor
    log_normalizer: Tensor

    def __init__(self, images: int, dimension: int) -> None:
        super().__init__()
        bound = math.sqrt(3.0 / dimension)  # rows of length 1 on average
        self.register_buffer("rows", torch.empty(images, dimension).uniform_(-bound, bound))
        self.register_buffer("log_normalizer", torch.tensor(torch.nan))  # until the first batch

    def loss(self, embedding: Tensor, candidates: Tensor, temperature: float) -> Tensor:
        # a copy: the backward pass needs the rows as they are now, and they are about to be renewed
        rows = self.rows.clone() if self.training else self.rows
        scores = candidate_scores(embedding, rows, candidates, temperature=temperature)
        estimate = estimated_log_normalizer(scores, len(rows))
        log_normalizer = torch.where(self.log_normalizer.isnan(), estimate, self.log_normalizer)
        if self.training:
            self.log_normalizer.copy_(log_normalizer)
        return noise_contrastive_loss(scores - log_normalizer, len(rows))

    @torch.no_grad()
    def renew(self, where: Tensor, embedding: Tensor, momentum: float) -> None:
        mixed = momentum * self.rows[where] + (1.0 - momentum) * embedding.to(self.rows)
        self.rows[where] = F.normalize(mixed, dim=1)


class CRD(FeatureTerm):
    """`contrastive_loss` in both directions, of 128-dimensional embeddings of both networks.

    Tian, Krishnan and Isola 2020 (1910.10699). A linear map and L2 normalisation make each network's embedding; both
    maps are trained. Each network's latest embeddings of all images are remembered: a row moves, at each batch that
    has its image, by `1 - momentum` to the new embedding and is normalised again. The normaliser of either direction
    is that of the first batch, for good.

    An image's negatives are drawn, with replacement, from all images of other classes (the authors draw without
    where there are enough), as a function of (seed, epoch, index) alone. So they are the same after a resume and for
    any number of processes, which all compute the loss of the whole batch and keep equal memories.

    Args:
        student, teacher: layers or roles that give vectors (B, D).
        negatives: K, at least 1.
        temperature: T > 0.
        momentum: the old row's share, in [0, 1).
        dimension: of the embeddings.
    """

    symbol = "CRD"
    transfers = "relations"
    remembers = True
    dims = (2,)
    index_to_row: Tensor
    first: Tensor
    count: Tensor
    key: Tensor

    def __init__(
        self,
        student: Layers = "embedding",
        teacher: Layers = "embedding",
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        dimension: int = 128,
    ) -> None:
        super().__init__(student, teacher)
        self.negatives = integer("negatives", negatives, low=1)
        self.temperature = number("temperature", temperature, above=0.0)
        self.momentum = number("momentum", momentum, low=0.0, high=1.0)
        if self.momentum == 1.0:
            raise ConfigError(
                f"Expected `momentum` to be below 1, but got {momentum!r}: the memories would never learn."
            )
        self.dimension = integer("dimension", dimension, low=1)
        self.epoch = self.seed = 0
        self.register_buffer("key", torch.zeros((), dtype=torch.int64), persistent=False)

    def build(self, setting: Setting) -> None:
        pairs = self.pairs(setting.student, setting.teacher)
        if len(pairs) != 1:
            raise ConfigError(f"CRD compares one layer of each network, but got {len(pairs)}.")
        if setting.transfer_set is None:
            raise ConfigError(
                "CRD remembers an embedding of every image, but this run does not say which images there are. "
                "Use a dataset that numbers its images, or another method."
            )
        self.seed = setting.seed
        self.begin_epoch(self.epoch)
        ours, theirs = pairs[0]
        self.embed_student = nn.Linear(ours.shape[1], self.dimension)
        self.embed_teacher = nn.Linear(theirs.shape[1], self.dimension)
        index, label = setting.transfer_set()
        self._number_images(index.long().cpu(), label.long().cpu())
        self.student_memory = Memory(len(index), self.dimension)
        self.teacher_memory = Memory(len(index), self.dimension)

    def _number_images(self, index: Tensor, label: Tensor) -> None:
        """Give each image a row, classes one after another, so that the other classes are all rows but one range."""
        distinct = len(index.unique())  # type: ignore[no-untyped-call]
        if len(index) != len(label) or distinct != len(index) or (distinct and int(index.min()) < 0):
            raise ConfigError("CRD needs an index of its own, at least 0, for every image of the transfer set.")
        _, place, count = label.unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
        if len(count) < 2:
            raise ConfigError(f"CRD needs images of two classes or more, but the transfer set has {len(count)}.")
        order = place.argsort(stable=True)
        first = count.cumsum(0) - count
        index_to_row = torch.full((int(index.max()) + 1,), -1)
        index_to_row[index[order]] = torch.arange(len(index))
        # by row, the range of its class; all three follow from the data, so that checkpoints need not hold them
        self.register_buffer("index_to_row", index_to_row, persistent=False)
        self.register_buffer("first", first[place[order]], persistent=False)
        self.register_buffer("count", count[place[order]], persistent=False)

    def begin_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.key.fill_(epoch_key(self.seed, epoch))

    def candidates(self, index: Tensor) -> Tensor:
        """Return the rows of images (B,) and of their negatives in this epoch, (B, 1 + K)."""
        row = self.index_to_row[index].unsqueeze(1)
        first, count = self.first[row], self.count[row]
        draw = mix(draws_by(self.key, index, self.negatives))  # again: augmentation uses the draws themselves
        other = below(draw, len(self.first) - count)
        return torch.cat([row, torch.where(other < first, other, other + count)], dim=1)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        [(ours, theirs)] = self.pairs(student, teacher)
        ours = gathered(_normalized(self.embed_student(ours)))
        theirs = gathered(_normalized(self.embed_teacher(theirs.detach())))
        candidates = self.candidates(gathered(batch.index))
        loss = self.teacher_memory.loss(ours, candidates, self.temperature)
        loss = loss + self.student_memory.loss(theirs, candidates, self.temperature)
        if self.training:
            self.student_memory.renew(candidates[:, 0], ours, self.momentum)
            self.teacher_memory.renew(candidates[:, 0], theirs, self.momentum)
        return loss


def _normalized(embedding: Tensor) -> Tensor:
    return F.normalize(full_precision(embedding), dim=1)
