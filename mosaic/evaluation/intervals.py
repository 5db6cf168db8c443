"""Figures with what they are worth: proportions and losses with 95 % intervals."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mosaic.protocol import Wire

_Z_95 = 1.959963984540054


class Estimate(Wire):
    """A figure from a sample, with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int
    """How many were measured."""


def proportion(hits: int, n: int) -> Estimate:
    """Wilson's score interval (E. B. Wilson, 1927): holds near 0 and 1 and for small n, where the normal one does
    not."""
    if not 0 <= hits <= n or n == 0:
        raise ValueError(f"{hits} of {n} is not a proportion")
    share = hits / n
    centre = share + _Z_95**2 / (2 * n)
    spread = _Z_95 * math.sqrt(share * (1 - share) / n + _Z_95**2 / (4 * n**2))
    scale = 1 + _Z_95**2 / n
    # at the ends the bound is exactly the share; arithmetic alone would leave a rest of 1e-17
    low = 0.0 if hits == 0 else (centre - spread) / scale
    high = 1.0 if hits == n else (centre + spread) / scale
    return Estimate(value=share, low=low, high=high, n=n)


def mean_loss(sums: Sequence[float], counts: Sequence[int], *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Mean loss per token over rows with `sums` of loss and `counts` of tokens; percentile bootstrap over rows (Efron,
    1979)."""
    return _bootstrap(np.asarray([sums], dtype=float), np.asarray(counts, dtype=float), resamples, seed)


def loss_reduction(
    base_sums: Sequence[float],
    tuned_sums: Sequence[float],
    counts: Sequence[int],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """By which share `tuned` lowers the loss of `base` on the same rows: 0.2 is 20 % lower; rows are resampled in
    pairs."""
    both = np.asarray([base_sums, tuned_sums], dtype=float)
    return _bootstrap(both, np.asarray(counts, dtype=float), resamples, seed)


def _bootstrap(sums: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], resamples: int, seed: int) -> Estimate:
    rows = counts.shape[0]
    if rows == 0 or sums.shape[1] != rows:
        raise ValueError(f"{sums.shape[1]} losses for {rows} rows")

    def figure(picked: npt.NDArray[np.intp]) -> float:
        means = sums[:, picked].sum(axis=1) / counts[picked].sum()
        return float(means[0] if len(means) == 1 else 1 - means[1] / means[0])

    generator = np.random.Generator(np.random.Philox(seed))
    drawn = [figure(picked) for picked in generator.integers(0, rows, (resamples, rows), dtype=np.intp)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value=figure(np.arange(rows, dtype=np.intp)), low=float(low), high=float(high), n=rows)
