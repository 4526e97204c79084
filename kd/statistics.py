"""What a set of seeds says about a difference: mean, interval, p value and verdict.

Arms are paired by seed: with one seed they share initial weights, order of images and augmentation, so that only what
is compared differs. A difference is "arm minus other arm", and a hypothesis is that it is above 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

MIN_SEEDS, HEADLINE_SEEDS = 6, 10
LEVEL = 0.05  # of the test; the interval has 95%
EXACT = 20  # up to so many differences all flips of their signs are tried
RESAMPLES = 9_999
DIGITS = 12  # means are rounded to these: sums in another order must tie where the numbers tie
_SEED = 20_150_309  # of the resampling: the same differences have the same interval everywhere

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """n numbers in short. `sd` is the sample standard deviation, [low, high] the BCa 95% interval of the mean.

    One number has neither, and no numbers have no mean.
    """

    n: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None


def summary(values: Sequence[float]) -> Summary:
    """Summarise numbers, one per seed."""
    n = len(values)
    if n < 2:
        return Summary(n, _rounded(values[0]) if n else None, None, None, None)
    low, high = bca_interval(values)
    return Summary(n, *(_rounded(float(x)) for x in (np.mean(values), np.std(values, ddof=1), low, high)))


def bca_interval(values: ArrayLike) -> tuple[Floats, Floats]:
    """95% bootstrap interval of the mean, bias-corrected and accelerated (Efron 1987); `scipy.stats.bootstrap`.

    Args:
        values: (..., n) samples along the last axis, n >= 2.

    Returns:
        low, high: (...). The interval of equal values is that value alone: resampling cannot show a spread that the
        sample does not have, and BCa is not defined there (0/0).
    """
    values = np.asarray(values, dtype=np.float64)
    if values.shape[-1] < 2:
        raise ValueError(f"An interval needs at least 2 values, but got {values.shape[-1]}.")
    low = high = _mean(values)
    spread = np.ptp(values, axis=-1) > 10.0**-DIGITS
    if spread.any():
        found = stats.bootstrap(
            (values[spread],),
            _mean,
            n_resamples=RESAMPLES,
            batch=1_000,
            axis=-1,
            method="BCa",
            vectorized=True,
            rng=np.random.default_rng(_SEED),
        ).confidence_interval
        low, high = low.copy(), high.copy()
        low[spread], high[spread] = found.low, found.high
    return low, high


def sign_flip_p(differences: ArrayLike) -> Floats:
    """Two-sided p value of the sign-flip test for "the two arms are exchangeable" (Fisher 1935).

    The share of all 2^n ways to flip the differences' signs whose sum is at least as far from 0 as the observed one.
    Exact up to n = 20; above, 99,999 random flips with a fixed seed (`scipy.stats.permutation_test`). The smallest
    value of n differences is 2 / 2^n: 0.0625 for 5 and 0.031 for 6.

    Args:
        differences: (..., n) along the last axis, n >= 1.
    """
    differences = np.asarray(differences, dtype=np.float64)
    n = differences.shape[-1]
    if n < 1:
        raise ValueError("A p value needs at least one difference.")
    if n > EXACT:
        return np.asarray(
            stats.permutation_test(
                (differences,),
                _mean,
                permutation_type="samples",
                vectorized=True,
                n_resamples=99_999,
                batch=1_000,
                axis=-1,
                rng=np.random.default_rng(_SEED),
            ).pvalue
        )
    sums = differences[..., :1]  # a flip of all signs has the same distance from 0: the first sign may stay
    for i in range(1, n):
        sums = np.concatenate([sums + differences[..., i : i + 1], sums - differences[..., i : i + 1]], axis=-1)
    tolerance = 1e-9 * np.abs(differences).sum(-1, keepdims=True)
    observed = np.abs(differences.sum(-1, keepdims=True))
    return np.asarray(np.mean(np.abs(sums) >= observed - tolerance, axis=-1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p values of several hypotheses that are judged together (Holm 1979), in the given order.

    An adjusted value below 0.05 keeps the chance of any false "supported" among them below 5%.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = highest
    return adjusted


def verdict(n: int, low: float | None, high: float | None, p: float | None) -> str:
    """Return what n paired differences say about "above 0", from their interval and their (adjusted) p value.

    "supported": the interval is above 0 and p < 0.05. "refuted": the interval is below 0. Else "inconclusive".
    Fewer than 6 seeds have no verdict, whatever they look like.
    """
    if n < MIN_SEEDS or low is None or high is None or p is None:
        return f"too few seeds: {n} of {MIN_SEEDS}"
    if low > 0 and p < LEVEL:
        return "supported"
    return "refuted" if high < 0 else "inconclusive"


def seeds_needed(hypotheses: int) -> int:
    """The fewest seeds with which each of so many hypotheses can be supported after Holm's adjustment."""
    return next(n for n in range(MIN_SEEDS, 64) if hypotheses * 2.0 ** (1 - n) < LEVEL)


def _mean(values: Floats, axis: int = -1) -> Floats:
    return np.asarray(np.round(np.mean(values, axis=axis), DIGITS))


def _rounded(value: float) -> float:
    return round(value, DIGITS)
