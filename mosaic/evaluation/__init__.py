"""How good an answer, a model, an index is: figures with their intervals."""

from mosaic.evaluation.intervals import Estimate, loss_reduction, mean_loss, proportion

__all__ = ["Estimate", "loss_reduction", "mean_loss", "proportion"]
