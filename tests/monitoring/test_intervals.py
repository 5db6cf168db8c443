"""Intervals hold the true difference about as often as they say, over simulated experiments of which it is known."""

import numpy as np
import pytest

from mosaic.monitoring.intervals import (
    Sample,
    _welch,
    _wilson,
    difference_of_means,
    difference_of_rates,
    rate,
    ratio_of_means,
    ratio_of_quantiles,
)

EXPERIMENTS = 300
LEAST, MOST = 0.90, 0.995
"""Of intervals that say 95 %: three standard deviations of a binomial of 300, and what small samples cost."""


def requests(values: np.ndarray) -> Sample:
    return Sample(np.asarray(values, dtype=np.float64), np.arange(len(values)))


def coverage(inside: list[bool]) -> float:
    return sum(inside) / len(inside)


def test_means_of_requests() -> None:
    random, plain, relative = np.random.default_rng(1), list[bool](), list[bool]()
    for _ in range(EXPERIMENTS):
        a, b = requests(random.gamma(2, 50, 90)), requests(random.gamma(2, 60, 30))
        found, ratio = difference_of_means(a, b), ratio_of_means(a, b)
        assert found is not None and ratio is not None
        plain.append(found.low <= 20 <= found.high)
        relative.append(ratio.low <= 0.2 <= ratio.high)
    assert LEAST <= coverage(plain) <= MOST and LEAST <= coverage(relative) <= MOST


def test_rates_of_requests() -> None:
    random, inside = np.random.default_rng(2), list[bool]()
    for _ in range(EXPERIMENTS):
        found = difference_of_rates(requests(random.random(200) < 0.02), requests(random.random(60) < 0.08))
        assert found is not None
        inside.append(found.low <= 0.06 <= found.high)
    assert LEAST <= coverage(inside) <= MOST


@pytest.mark.parametrize("q", [0.5, 0.95])
def test_quantiles_of_requests(q: float) -> None:
    random, inside = np.random.default_rng(3), list[bool]()
    for _ in range(EXPERIMENTS):
        a, b = requests(random.lognormal(4, 0.5, 400)), requests(random.lognormal(4.1, 0.5, 150))
        found = ratio_of_quantiles(a, b, q)
        assert found is not None
        inside.append(found.low <= np.expm1(0.1) <= found.high)
    assert LEAST <= coverage(inside) <= MOST


def users(random: np.random.Generator, count: int, mean: float) -> Sample:
    """Users who differ, each with some requests that are alike; their true mean is `mean` at any number of requests."""
    sizes = random.integers(1, 40, count)
    own = random.normal(mean, 20, count)
    units = np.repeat(np.arange(count), sizes)
    return Sample(own[units] + random.normal(0, 5, len(units)), units)


def test_means_and_medians_of_users() -> None:
    random, means, medians, naive = np.random.default_rng(4), list[bool](), list[bool](), list[bool]()
    for number in range(120):
        a, b = users(random, 60, 200), users(random, 30, 220)
        found, as_requests = difference_of_means(a, b), difference_of_means(requests(a.values), requests(b.values))
        assert found is not None and as_requests is not None
        means.append(found.low <= 20 <= found.high)
        naive.append(as_requests.low <= 20 <= as_requests.high)
        if number % 2:  # a thousand resamples each
            continue
        median = ratio_of_quantiles(a, b, 0.5)
        assert median is not None
        medians.append(median.low <= 0.1 <= median.high)
    assert coverage(means) >= 0.88 and coverage(medians) >= 0.88
    assert coverage(naive) < 0.75  # as if each request were somebody else's: sure of what is not so


def test_rates_of_users() -> None:
    random, inside = np.random.default_rng(5), list[bool]()

    def failures(count: int, share: float) -> Sample:
        units = np.repeat(np.arange(count), random.integers(5, 30, count))
        own = random.beta(2 * share * 10, 2 * (1 - share) * 10, count)
        return Sample((random.random(len(units)) < own[units]).astype(np.float64), units)

    for _ in range(EXPERIMENTS):
        found = difference_of_rates(failures(60, 0.1), failures(40, 0.2))
        assert found is not None
        inside.append(found.low <= 0.1 <= found.high)
    assert LEAST <= coverage(inside) <= MOST


def test_against_published_and_exact_values() -> None:
    # Newcombe 1998 (Statistics in Medicine 17:873), table II, method 10: 56/70 - 48/80, and 0/10 - 0/10
    def of(hits: int, total: int) -> Sample:
        return requests(np.array([1] * hits + [0] * (total - hits)))

    found = difference_of_rates(of(48, 80), of(56, 70))
    assert found == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert difference_of_rates(of(0, 10), of(0, 10)) == pytest.approx((-0.2775, 0.2775), abs=5e-5)
    assert _wilson(0.0, 10) == pytest.approx((0, 0.2775), abs=5e-5)
    # tables of Student's t at 0.975
    for freedom, quantile in ((4, 2.776), (10, 2.228), (30, 2.042), (1000, 1.962)):
        assert _welch(0.0, (1.0, freedom + 1), (0.0, 2)).high == pytest.approx(quantile, rel=0.0005)


def test_the_ranks_of_resamples_are_those_of_resampling() -> None:
    random = np.random.default_rng(6)
    a, b = random.lognormal(4, 0.5, 300), random.lognormal(4, 0.5, 300)
    quick = ratio_of_quantiles(requests(a), requests(b), 0.9)
    drawn = [np.sort(random.choice(b, 300))[269] / np.sort(random.choice(a, 300))[269] - 1 for _ in range(4000)]
    assert quick == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.03)


def test_too_little_says_nothing_and_the_same_says_the_same() -> None:
    few, many = requests(np.arange(4.0)), requests(np.arange(1.0, 60.0))
    assert difference_of_means(few, many) is None and rate(few) is None
    assert difference_of_rates(requests(np.ones(9)), few) is None
    assert ratio_of_quantiles(many, many, 0.95) is None and ratio_of_quantiles(many, many, 0.5) is not None
    assert ratio_of_means(requests(np.zeros(9)), many) is None
    assert ratio_of_quantiles(many, many, 0.5) == ratio_of_quantiles(many, many, 0.5)
    one_user = Sample(many.values, np.zeros(59, dtype=np.int64))
    assert difference_of_means(one_user, many) is None
    assert difference_of_means(requests(np.ones(9)), requests(np.ones(9))) == (0, 0)
