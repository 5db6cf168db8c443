"""What is known of a text classifier without loading it."""

from collections.abc import Mapping
from typing import Any


def label_count(config: Mapping[str, Any]) -> int:
    """How many labels a transformers model for sequence classification has, by its config.json; 0 for another model.

    transformers does not write down the two labels that it takes for granted.
    """
    if not any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or []):
        return 0
    return len(config.get("id2label") or ("LABEL_0", "LABEL_1"))
