"""Relational knowledge distillation: the distances and angles between the images of a batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.losses._features import total, unit
from kd.losses._gather import gathered
from kd.losses._numeric import matched_batches, outside_autocast
from kd.losses.term import FeatureTerm, Layers
from kd.types import Batch, Output


def rkd_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Difference of the relative distances, `1/B^2 sum_ij huber(psi_s(i, j) - psi_t(i, j))`.

    psi(i, j) = ||e_i - e_j|| / mu, with mu the mean of the batch's positive distances; huber(x) is x^2/2 for |x| <= 1
    and |x| - 1/2 beyond. Park et al. 2019 (1904.05068), equations 4 to 7. psi does not change when the embedding is
    moved, rotated or scaled.

    Repeated rows have distance 0 and get no gradient from it. The paper's mu averages over all pairs of different
    images, which is the same unless rows repeat; the sum is divided by B^2 as in the authors' published code.

    Args:
        student: (B, D_s), or (B, ...), flattened.
        teacher: (B, D_t), likewise; gets no gradient.

    Raises:
        ConfigError: the numbers of images differ.
    """
    ours, theirs = matched_batches(student, teacher)
    return F.smooth_l1_loss(_relative_distances(ours), _relative_distances(theirs))


@outside_autocast
def rkd_angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Difference of the angles in all triangles, `1/B^3 sum_ijk huber(cos_s(i, j, k) - cos_t(i, j, k))`.

    cos(i, j, k) is the cosine of the angle at e_i between e_j - e_i and e_k - e_i; huber as in `rkd_distance_loss`.
    Park et al. 2019 (1904.05068), equations 8 and 9. A side of length 0 has cosine 0 with every other, and gets no
    gradient. The mean is over all B^3 triples as in the authors' published code, also those that repeat an image and
    add nothing. Memory: B^2 D + B^3 numbers.

    Args:
        student: (B, D_s), or (B, ...), flattened.
        teacher: (B, D_t), likewise; gets no gradient.

    Raises:
        ConfigError: the numbers of images differ.
    """
    ours, theirs = matched_batches(student, teacher)
    return F.smooth_l1_loss(_cosines(ours), _cosines(theirs))


def _relative_distances(rows: Tensor) -> Tensor:
    """Return the distances (B, B) over the mean of the positive ones."""
    # Not from the Gram matrix, where the distance of close rows cancels to noise. The gradient of cdist at 0 is 0.
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    count = (distances > 0).sum()
    mean = distances.sum() / count.clamp(min=1)
    return distances / torch.where(count > 0, mean, 1.0)


def _cosines(rows: Tensor) -> Tensor:
    """Return the cosines (B, B, B) of the angles; [i, j, k] is that at i, between j and k."""
    sides = unit(rows.unsqueeze(0) - rows.unsqueeze(1))  # [i, j] points from i to j
    return torch.bmm(sides, sides.transpose(1, 2))


class RKDDistance(FeatureTerm):
    """`rkd_distance_loss` of the embeddings; over the batches of all processes."""

    symbol = "RKD distance"
    transfers = "relations"

    def __init__(self, student: Layers = "embedding", teacher: Layers = "embedding") -> None:
        super().__init__(student, teacher)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        return total(rkd_distance_loss(gathered(s), gathered(t)) for s, t in self.pairs(student, teacher))


class RKDAngle(FeatureTerm):
    """`rkd_angle_loss` of the embeddings; over the batches of all processes."""

    symbol = "RKD angle"
    transfers = "relations"

    def __init__(self, student: Layers = "embedding", teacher: Layers = "embedding") -> None:
        super().__init__(student, teacher)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        return total(rkd_angle_loss(gathered(s), gathered(t)) for s, t in self.pairs(student, teacher))
