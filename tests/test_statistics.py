"""The verdict's statistics: against oracles in the plainest words, and on worlds whose truth is known."""

import itertools
import math
import statistics as plain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd import statistics
from kd.statistics import bca_interval, holm, seeds_needed, sign_flip_p, summary, verdict

AUDITS = 2_000
SAMPLE = [0.0031, 0.0007, -0.0012, 0.0044, 0.0019, 0.0026, 0.0102, -0.0003]


def normal(generator, shape):
    return generator.normal(0.98, 0.001, shape)


def of_10_000_images(generator, shape):
    return generator.binomial(10_000, 0.985, shape) / 10_000


def of_397_images(generator, shape):
    return generator.binomial(397, 0.96, shape) / 397


def skewed(generator, shape):
    """Most seeds near the best accuracy, a few far below."""
    return 0.99 - 0.002 * generator.lognormal(size=shape)


WORLDS = (normal, of_10_000_images, of_397_images, skewed)


def verdicts(differences):
    """The verdict of each row of differences, by the functions that an audit calls."""
    low, high = bca_interval(differences)
    found = zip(low, high, sign_flip_p(differences), strict=True)
    return [verdict(differences.shape[1], *one) for one in found]


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.__name__)
@pytest.mark.parametrize("n", [6, 10])
def test_no_effect_is_supported_in_at_most_one_of_twenty_audits(world, n, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    generator = np.random.default_rng(n)
    found = verdicts(world(generator, (AUDITS, n)) - world(generator, (AUDITS, n)))
    assert found.count("supported") <= 0.05 * AUDITS
    assert found.count("supported") > 0  # the test can fail: chance does look like an effect now and then
    assert set(found) <= {"supported", "refuted", "inconclusive"}


def test_an_effect_of_two_standard_deviations_is_found_with_ten_seeds(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    differences = np.random.default_rng(0).normal(0.002, 0.001, (AUDITS, 10))
    assert verdicts(differences).count("supported") > 0.95 * AUDITS
    assert verdicts(-differences).count("refuted") > 0.95 * AUDITS


def test_bca_agrees_with_a_naive_implementation(monkeypatch):
    """Efron and Tibshirani 1993, equations 14.9 to 14.15, on the exact bootstrap distribution: all 6,435 resamples."""
    distribution, n, centre = plain.NormalDist(), len(SAMPLE), plain.fmean(SAMPLE)
    resamples = []  # each multiset of the values, and in how many of the 8^8 orders it can be drawn
    for drawn in itertools.combinations_with_replacement(range(n), n):
        orders = math.factorial(n) // math.prod(math.factorial(drawn.count(i)) for i in range(n))
        resamples.append((plain.fmean(SAMPLE[i] for i in drawn), orders / n**n))
    below = math.fsum(share for mean, share in resamples if mean < centre - 1e-12)
    tied = math.fsum(share for mean, share in resamples if abs(mean - centre) <= 1e-12)
    z0 = distribution.inv_cdf(below + tied / 2)
    jackknife = [plain.fmean(SAMPLE[:i] + SAMPLE[i + 1 :]) for i in range(n)]
    gaps = [plain.fmean(jackknife) - one for one in jackknife]
    acceleration = sum(gap**3 for gap in gaps) / (6 * sum(gap**2 for gap in gaps) ** 1.5)

    def end(probability: float, *, corrected: bool = True) -> float:
        z = z0 + distribution.inv_cdf(probability)
        wanted = distribution.cdf(z0 + z / (1 - acceleration * z)) if corrected else probability
        shares = itertools.accumulate(share for _, share in sorted(resamples))
        return next(mean for (mean, _), total in zip(sorted(resamples), shares, strict=True) if total >= wanted)

    monkeypatch.setattr(statistics, "RESAMPLES", 200_000)
    low, high = bca_interval(SAMPLE)
    error = 0.04 * plain.stdev(SAMPLE) / math.sqrt(n)
    assert float(low) == pytest.approx(end(0.025), abs=error)
    assert float(high) == pytest.approx(end(0.975), abs=error)
    assert float(high) != pytest.approx(end(0.975, corrected=False), abs=3 * error)  # no plain percentile interval


def test_an_interval_does_not_depend_on_what_else_is_computed():
    rows = np.random.default_rng(3).normal(size=(3, 7))
    rows[1] = 0.25
    together = np.stack(bca_interval(rows), axis=-1)
    assert together[1].tolist() == [0.25, 0.25]
    for row, both in zip(rows, together, strict=True):
        assert np.array(bca_interval(row)).tolist() == both.tolist()


@pytest.mark.parametrize("value", [0.0, 0.01, -0.01, 0.1 + 0.2])
def test_equal_differences_have_themselves_as_interval(value):
    found = summary([value] * 6)
    assert found.mean == found.low == found.high == pytest.approx(value)
    assert found.sd == pytest.approx(0, abs=1e-12)
    words = {0.0: "inconclusive", -0.01: "refuted"}.get(value, "supported")
    assert verdict(6, found.low, found.high, float(sign_flip_p([value] * 6))) == words


def brute_force(differences: list[float]) -> float:
    observed = abs(math.fsum(differences))
    flips = list(itertools.product((1, -1), repeat=len(differences)))
    sums = [abs(math.fsum(sign * d for sign, d in zip(signs, differences, strict=True))) for signs in flips]
    return sum(s >= observed - 1e-12 for s in sums) / len(flips)


@given(st.lists(st.integers(-40, 40).map(lambda count: count / 10_000), min_size=1, max_size=9))
def test_the_p_value_counts_all_flips_of_the_signs(differences):
    # ten thousandths tie often, and their sums differ in the last bit by the order of adding
    assert float(sign_flip_p(differences)) == brute_force(differences)


def test_the_smallest_p_values():
    assert float(sign_flip_p([0.01] * 5)) == 0.0625
    assert float(sign_flip_p([0.01, 0.02, 0.03, 0.01, 0.04, 0.05])) == 2 / 64
    assert float(sign_flip_p([-0.01] * 6)) == 2 / 64
    assert float(sign_flip_p([0.0] * 6)) == 1.0


def test_many_seeds_are_flipped_at_random_and_agree_with_the_exact_value(monkeypatch):
    differences = np.random.default_rng(5).normal(0.4, 1, 18)
    exact = float(sign_flip_p(differences))
    monkeypatch.setattr(statistics, "EXACT", 17)
    assert float(sign_flip_p(differences)) == pytest.approx(exact, abs=0.005)
    assert float(sign_flip_p(differences)) == float(sign_flip_p(differences))


def test_holm():
    assert holm([]) == []
    assert holm([0.03]) == [0.03]
    # worked by hand: 4 * 0.005, 3 * 0.01, 2 * 0.03, and 0.04 no lower than the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_nor_changes_their_order(values):
    found = holm(values)
    assert all(value <= adjusted <= 1 for value, adjusted in zip(values, found, strict=True))
    assert [a for _, a in sorted(zip(values, found, strict=True))] == sorted(found)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((6, 0.001, 0.003, 0.031), "supported"),
        ((6, 0.001, 0.003, 0.05), "inconclusive"),  # the interval alone is not enough
        ((6, 0.0, 0.003, 0.031), "inconclusive"),  # above 0 means above 0
        ((6, -0.003, -0.001, 0.2), "refuted"),
        ((6, -0.003, 0.001, 0.6), "inconclusive"),
        ((5, 0.001, 0.003, 0.0625), "too few seeds: 5 of 6"),
        ((1, None, None, 1.0), "too few seeds: 1 of 6"),
        ((0, None, None, None), "too few seeds: 0 of 6"),
    ],
)
def test_verdict(arguments, words):
    assert verdict(*arguments) == words


def test_few_seeds_cannot_support_many_hypotheses():
    assert [seeds_needed(hypotheses) for hypotheses in (1, 2, 3, 6, 7)] == [6, 7, 7, 8, 9]
    for hypotheses in (1, 2, 3, 6, 7):
        needed = seeds_needed(hypotheses)
        best = holm([float(sign_flip_p([1.0] * needed))] * hypotheses)
        assert max(best) < 0.05


def test_a_summary_of_little():
    assert summary([]).mean is None
    assert (summary([0.5]).mean, summary([0.5]).sd, summary([0.5]).low) == (0.5, None, None)
    two = summary([0.1, 0.3])
    assert (two.mean, two.sd) == (pytest.approx(0.2), pytest.approx(0.02**0.5))
    with pytest.raises(ValueError, match="at least 2"):
        bca_interval([0.5])
    with pytest.raises(ValueError, match="at least one"):
        sign_flip_p([])
