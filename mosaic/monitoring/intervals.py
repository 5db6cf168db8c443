"""How sure a difference between two arms is: intervals that hold the true one in 95 of 100 experiments.

A value belongs to a unit: the request where each was drawn an arm for, the user where users keep theirs. What one user
asks is alike, so that a thousand requests of ten users say little more than ten; units, not requests, are what is
counted as independent.

- Means are ratios of sums over units, with the variance of such ratios (the delta method; Deng, Knoblich and Lu 2018),
  which for units of one value is the usual one. Differences are Welch's (1947), relative ones Welch's of logarithms.
- Rates have Wilson's interval (1927), their differences Newcombe's from two of these (1998, method 10); units with many
  requests count as so many independent ones as the variance between units allows (Korn and Graubard 1998).
- Quantiles are bootstrapped (Efron 1979): single values by the ranks that resampling would draw, which are known to be
  beta-distributed, and users by drawing users anew. The seed is fixed: the same rows say the same.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CONFIDENCE = 0.95
_TAIL = (1 + CONFIDENCE) / 2
_Z = NormalDist().inv_cdf(_TAIL)
_SEED = 20_261_101
_DRAWS, _DRAWS_OF_UNITS = 4000, 1000
LEAST_UNITS = 5
"""Fewer say nothing about how much they vary."""
_LEAST_BEYOND = 5
"""Values that must lie beyond a quantile for it to be told."""


class Interval(NamedTuple):
    low: float
    high: float


class Sample(NamedTuple):
    """An arm's values of one metric, each with its unit's number from 0 on."""

    values: Floats
    units: Ints

    @property
    def num_units(self) -> int:
        return len(np.unique(self.units))

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    def quantile(self, q: float) -> float:
        """The value of which a share of `q` is not above it."""
        return float(np.sort(self.values)[_rank(q, len(self.values))])


class _Mean(NamedTuple):
    value: float
    variance: float
    units: int


def difference_of_means(a: Sample, b: Sample) -> Interval | None:
    """Of b's mean minus a's; None for too few units."""
    one, two = _mean(a), _mean(b)
    if min(one.units, two.units) < LEAST_UNITS:
        return None
    return _welch(two.value - one.value, (one.variance, one.units), (two.variance, two.units))


def ratio_of_means(a: Sample, b: Sample) -> Interval | None:
    """Of b's mean by a's, less 1: 0.1 is a tenth more. None for too few units, and where a mean is not above 0."""
    one, two = _mean(a), _mean(b)
    if min(one.units, two.units) < LEAST_UNITS or one.value <= 0 or two.value <= 0:
        return None
    relative = [(mean.variance / mean.value**2, mean.units) for mean in (one, two)]
    low, high = _welch(math.log(two.value / one.value), relative[0], relative[1])
    return Interval(math.expm1(low), math.expm1(high))


def ratio_of_quantiles(a: Sample, b: Sample, q: float) -> Interval | None:
    """Of b's quantile by a's, less 1; None for too few units or values, and where a's may be 0."""
    if min(a.num_units, b.num_units) < LEAST_UNITS:
        return None
    if min(len(a.values), len(b.values)) * min(q, 1 - q) < _LEAST_BEYOND:
        return None
    random = np.random.default_rng(_SEED)
    of_units = a.num_units < len(a.values) or b.num_units < len(b.values)
    resampled = _quantiles_of_units if of_units else _quantiles
    one, two = resampled(a, q, random), resampled(b, q, random)
    if one.min() <= 0:
        return None
    low, high = np.quantile(two / one - 1, [1 - _TAIL, _TAIL])
    return Interval(float(low), float(high))


def rate(hits: Sample) -> Interval | None:
    """Wilson's, of values that are 0 or 1."""
    if hits.num_units < LEAST_UNITS:
        return None
    return _wilson(hits.mean, _independent(hits))


def difference_of_rates(a: Sample, b: Sample) -> Interval | None:
    """Newcombe's, of b's rate minus a's; None for too few units."""
    one, two = rate(a), rate(b)
    if one is None or two is None:
        return None
    p, q = a.mean, b.mean
    low = q - p - math.hypot(q - two.low, one.high - p)
    high = q - p + math.hypot(two.high - q, p - one.low)
    return Interval(low, high)


def _mean(sample: Sample) -> _Mean:
    sums = np.bincount(sample.units, weights=sample.values)
    counts = np.bincount(sample.units)
    there = counts > 0
    sums, counts, units = sums[there], counts[there], int(there.sum())
    value = float(sums.sum() / counts.sum())
    if units < 2:
        return _Mean(value, math.inf, units)
    squares = float(((sums - value * counts) ** 2).sum())
    return _Mean(value, units / (units - 1) * squares / float(counts.sum()) ** 2, units)


def _welch(difference: float, a: tuple[float, int], b: tuple[float, int]) -> Interval:
    from scipy.special import stdtrit  # takes a moment that who compares nothing need not wait

    variance = a[0] + b[0]
    if variance == 0:
        return Interval(difference, difference)
    freedom = variance**2 / sum(of**2 / (units - 1) for of, units in (a, b))
    width = float(stdtrit(freedom, _TAIL)) * math.sqrt(variance)
    return Interval(difference - width, difference + width)


def _wilson(p: float, n: float) -> Interval:
    middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    width = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    return Interval(max(0.0, middle - width), min(1.0, middle + width))


def _independent(hits: Sample) -> float:
    """How many independent requests would vary as much."""
    mean, requests = _mean(hits), len(hits.values)
    if mean.units == requests:
        return float(requests)
    spread = mean.value * (1 - mean.value)
    if spread == 0 or mean.variance == 0:  # all alike: how much units differ is not known
        return float(mean.units)
    return float(np.clip(spread / mean.variance, mean.units, requests))


def _rank(q: float, n: int) -> int:
    return max(0, math.ceil(q * n) - 1)


def _quantiles(sample: Sample, q: float, random: np.random.Generator) -> Floats:
    """The quantiles of resamples, without making them: of n uniform draws the k-th smallest is Beta(k, n - k + 1)."""
    n = len(sample.values)
    k = _rank(q, n) + 1
    places = np.ceil(n * random.beta(k, n - k + 1, _DRAWS)).astype(np.int64) - 1
    found: Floats = np.sort(sample.values)[np.clip(places, 0, n - 1)]
    return found


def _quantiles_of_units(sample: Sample, q: float, random: np.random.Generator) -> Floats:
    order = np.argsort(sample.values, kind="stable")
    values, (names, units) = sample.values[order], np.unique(sample.units[order], return_inverse=True)
    found = np.empty(_DRAWS_OF_UNITS)
    for draw in range(_DRAWS_OF_UNITS):
        times = np.bincount(random.integers(0, len(names), len(names)), minlength=len(names))
        reached = np.cumsum(times[units])
        found[draw] = values[np.searchsorted(reached, math.ceil(q * reached[-1]))]
    return found
