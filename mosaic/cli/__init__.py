"""The `mosaic` command: one file per noun, and the only reader of the environment."""

from mosaic.cli.main import main

__all__ = ["main"]
