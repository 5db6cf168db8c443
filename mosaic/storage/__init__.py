"""Bytes by address: local disk, S3, Google and Azure storage behind one small object."""

from mosaic.storage.storage import Storage, StorageSettings

__all__ = ["Storage", "StorageSettings"]
