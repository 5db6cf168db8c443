"""A tiny random Llama with a real chat template."""

from pathlib import Path

import pytest

from mosaic.models.doubles import tiny_llama


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks, 64 wide, one token per byte; weights from a fixed seed."""
    return tiny_llama(tmp_path_factory.mktemp("tiny-llama"), seed=7)
