"""A stand-in for an embedding model: no download, no network, the same vectors everywhere."""

import hashlib
import re

import numpy as np
import numpy.typing as npt

from mosaic.errors import BadRequest

_WORD = re.compile(r"\w+")


class HashEmbedder:
    """Bag of words by feature hashing (Weinberger et al., ICML 2009): texts that share words are near each other.

    Counts what it embedded in `num_texts`. Knows nothing of meaning; for tests and demonstrations.
    """

    def __init__(self, dimension: int = 64) -> None:
        if dimension < 1:
            raise BadRequest(f"dimension = {dimension}: must be at least 1", param="dimension")
        self.dimension = dimension
        self.num_texts = 0

    def __call__(self, texts: list[str]) -> npt.NDArray[np.float32]:
        matrix = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in zip(matrix, texts, strict=True):
            for word in _WORD.findall(text.lower()):
                digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
                row[int.from_bytes(digest[:7], "little") % self.dimension] += 1.0 if digest[7] & 1 else -1.0
        norms = np.linalg.norm(matrix, axis=1, keepdims=True)
        self.num_texts += len(texts)
        scaled: npt.NDArray[np.float32] = matrix / np.where(norms == 0, np.float32(1), norms)
        return scaled

    async def embed_async(self, texts: list[str], parent_request_id: str | None = None) -> npt.NDArray[np.float32]:
        """The same for an event loop; on whose behalf it is done makes no difference here."""
        return self(texts)
