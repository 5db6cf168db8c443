"""Intervals against what they promise: coverage by simulation, known values, bad input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.evaluation import loss_reduction, mean_loss, proportion


def test_a_known_wilson_interval() -> None:
    # 10 of 20, from Wilson's formula by hand: (0.5 + z^2/40 -+ z sqrt(1/80 + z^2/1600)) / (1 + z^2/20), z = 1.96
    figure = proportion(10, 20)
    assert (figure.value, figure.n) == (0.5, 20)
    assert figure.low == pytest.approx(0.2993, abs=1e-4) and figure.high == pytest.approx(0.7007, abs=1e-4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_proportion_is_inside_its_interval(hits_of: tuple[int, int]) -> None:
    figure = proportion(*hits_of)
    assert 0 <= figure.low <= figure.value <= figure.high <= 1


def test_wilson_covers_as_often_as_it_says() -> None:
    generator = np.random.Generator(np.random.Philox(3))
    for share in (0.05, 0.5, 0.93):
        drawn = generator.binomial(100, share, 2000)
        covered = [figure.low <= share <= figure.high for figure in (proportion(int(hits), 100) for hits in drawn)]
        assert 0.92 <= np.mean(covered) <= 0.98


def test_losses_are_per_token_and_rows_are_paired() -> None:
    assert mean_loss([2.0, 30.0], [1, 9]).value == pytest.approx(3.2)
    rows = list(np.random.Generator(np.random.Philox(1)).uniform(1, 20, 200))
    counts = [5] * 200
    reduced = loss_reduction(rows, [0.6 * loss for loss in rows], counts)
    # every row is lowered by the same share: paired resampling leaves no spread at all
    assert reduced.value == pytest.approx(0.4) and reduced.high - reduced.low < 1e-9
    assert loss_reduction(rows, rows, counts).value == pytest.approx(0)


def test_what_is_no_sample_is_refused() -> None:
    for hits, n in ((1, 0), (3, 2), (-1, 5)):
        with pytest.raises(ValueError, match="is not a proportion"):
            proportion(hits, n)
    with pytest.raises(ValueError, match="2 losses for 1 rows"):
        mean_loss([1.0, 2.0], [1])
