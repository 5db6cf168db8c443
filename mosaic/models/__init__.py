"""A model's name becomes a local folder: packaged, local, registered, in an object store, or on a model hub."""

from mosaic.models.packaged import PACKAGED
from mosaic.models.resolve import ModelResolver, ModelSource

__all__ = ["PACKAGED", "ModelResolver", "ModelSource"]
