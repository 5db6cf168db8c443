"""What a model version's files say, of which none is loaded: its signature, and which of them run code when loaded.

The rule is by name, so that it costs a listing: a pickle is one by its suffix, and `.bin` is taken for torch's, which
is a pickle inside. MLflow's `MLmodel` names the rest: what its flavors unpickle or import, and what python_function
gives to a loader that does.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml
from pyarrow import fs

from mosaic.catalog.records import ModelVersion
from mosaic.errors import BadRequest
from mosaic.protocol import Wire
from mosaic.storage import Storage

MLMODEL = "MLmodel"
PYTHON_MODEL = "mosaic-model.json"
"""Describes a Python class that is a model (`mosaic.serving.python_model`), whose modules run."""
RULE = 3
"""Grows when the rule finds more: what was found by an older one is looked for again."""
_PICKLES = frozenset(
    [
        ".pkl",
        ".pickle",
        ".p",
        ".pck",
        ".sav",
        ".joblib",
        ".pt",
        ".pth",
        ".bin",
        ".ckpt",
        ".dill",
        ".cloudpickle",
        ".statsmodels",
    ]
)
_NAMED = ("python_model", "model_code_path", "code", "pickled_model")
"""Where a flavor names a file that is unpickled or imported, whatever its suffix."""
_SAFE_LOADERS = ("mlflow.onnx", "mlflow.catboost")
"""Loaders of python_function that read weights and a configuration. Others unpickle or import, if not always: that of
transformers runs the model's own code where its classes are not the library's."""
_LOADED = ("data", "model_path")
"""Where python_function says what its loader is given."""
_SIGNATURE = ("inputs", "outputs", "params")
_MOST_FILES = 100_000
_LARGEST_MLMODEL_BYTES = 1024 * 1024


class Looked(Wire):
    """What is in a version's folder."""

    names: tuple[str, ...]
    """Relative paths, sorted."""
    pickles: tuple[str, ...]
    """Those that run code when they are loaded, sorted."""
    signature: dict[str, str] | None
    """MLflow's, each part as JSON text; None if there is none."""


def look(storage: Storage, address: str) -> Looked:
    """Empty for a folder that is not there; raises BadRequest for an MLmodel that cannot be read, Unavailable."""
    names = _names(storage, address)
    described: Mapping[str, Any] = {}
    if MLMODEL in names:
        described = _read_mlmodel(storage, f"{address.rstrip('/')}/{MLMODEL}")
    signature = described.get("signature")
    return Looked(
        names=tuple(names),
        pickles=tuple(sorted({*filter(_is_pickle, names), *_named(described), *_modules(names)})),
        signature=_signature(signature) if isinstance(signature, dict) else None,
    )


def pickles_of(storage: Storage, version: ModelVersion) -> tuple[str, ...]:
    """As they were found when the version was made, if its files cannot have changed since; otherwise as they are."""
    kept, rule = version.spec.get("pickles"), version.spec.get("pickles_rule")
    if isinstance(kept, list) and version.checksums and rule == RULE:
        return tuple(str(name) for name in kept)
    return look(storage, version.source).pickles


def _is_pickle(name: str) -> bool:
    """Also behind a suffix of a compression."""
    return not _PICKLES.isdisjoint(PurePosixPath(name.lower()).suffixes)


def _modules(names: Sequence[str]) -> Iterable[str]:
    return (name for name in names if PYTHON_MODEL in names and name.endswith(".py"))


def _names(storage: Storage, address: str) -> list[str]:
    filesystem, path = storage.filesystem(address)
    found = filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    names = sorted(
        PurePosixPath(info.path).relative_to(path).as_posix() for info in found if info.type == fs.FileType.File
    )
    if len(names) > _MOST_FILES:
        raise BadRequest(f"{address!r} holds {len(names)} files; a model version has up to {_MOST_FILES}")
    return names


def _read_mlmodel(storage: Storage, address: str) -> Mapping[str, Any]:
    filesystem, path = storage.filesystem(address)
    with filesystem.open_input_stream(path, compression=None) as stream:
        data = stream.read(_LARGEST_MLMODEL_BYTES + 1)
    # Merged keys grow without bound while they are read, and MLflow writes none.
    if len(data) > _LARGEST_MLMODEL_BYTES or b"<<" in data:
        raise BadRequest(
            f"{address!r} is over {_LARGEST_MLMODEL_BYTES} bytes, or merges keys, as no MLmodel of MLflow does"
        )
    try:
        described = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        told = " ".join(str(error).split())[:200]
        raise BadRequest(f"{address!r} is no YAML: {told}", code="failed_precondition") from None
    return described if isinstance(described, dict) else {}


def _named(described: Mapping[str, Any]) -> Iterable[str]:
    flavors = described.get("flavors")
    for flavor in flavors.values() if isinstance(flavors, dict) else ():
        if not isinstance(flavor, dict):
            continue
        loader = flavor.get("loader_module")
        keys = _NAMED if loader is None or loader in _SAFE_LOADERS else (*_NAMED, *_LOADED)
        named = [flavor[key] for key in keys if isinstance(flavor.get(key), str)]
        yield from named
        if not named and ("cloudpickle_version" in flavor or keys is not _NAMED):
            yield MLMODEL  # it runs something, and does not say what


def _signature(said: Mapping[str, Any]) -> dict[str, str] | None:
    kept = {part: said[part] for part in _SIGNATURE if isinstance(said.get(part), str)}
    return kept or None
