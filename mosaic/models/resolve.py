"""From a model's name to a local folder: start reading here; `resolve` says which names there are."""

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import Field

from mosaic.errors import BadRequest, NotFound, PermissionDenied, Unavailable, not_found
from mosaic.models import cache, convert, hub, packaged
from mosaic.protocol import Wire
from mosaic.storage import Storage

_CATALOG_VERSION = re.compile(r"[^/@.]+\.[^/@.]+\.[^/@.]+(/\d+|@[^/@]+)")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


_MARKS = ("config.json", "adapter_config.json", "MLmodel", "mosaic-model.json")
"""A model, an adapter, a model of MLflow's, or a Python class has one of these."""


class ModelSource(Wire):
    """Where the files of a registered model version are."""

    name: str
    """The version itself, also when it was asked for by alias: `main.ml.bot/3`."""
    address: str
    checksums: dict[str, str] = Field(default_factory=dict)
    """SHA-256 in hexadecimal by relative path; empty if none were registered, and then nothing is checked."""
    pickles: tuple[str, ...] = ()
    """Files of it that run code when they are loaded."""
    may_run_code: bool = False
    """Whether the one who loads it may have them do so."""
    allow_with: tuple[str, ...] = ()
    """The commands with which an administrator would allow it."""


class ModelResolver:
    """Finds or fetches model folders. `cache` is a folder on this machine, which several processes may share."""

    def __init__(
        self,
        cache: Path,
        storage: Storage,
        catalog_version: Callable[[str], ModelSource] | None = None,
        *,
        hub_endpoint: str | None = None,
    ) -> None:
        """`catalog_version` says where `main.ml.bot/3` or `main.ml.bot@champion` is; `hub_endpoint` names a mirror."""
        self._cache = cache
        self._storage = storage
        self._catalog_version = catalog_version
        self._hub_endpoint = hub_endpoint

    def resolve(self, name: str) -> Path:
        """The local folder of a model.

        `smollm2-135m-instruct` (packaged), `/a/folder` or `./a/folder`, `main.ml.bot/3` and `main.ml.bot@champion`
        (registered), `s3://bucket/folder` (an address, taken to never change), `org/name` (on the model hub). May take
        long when something has to be fetched or converted, which happens once. Raises NotFound with what exists,
        BadRequest for a folder without a model, PermissionDenied for a registered one that runs code when loaded and
        may not, Conflict if files are not those registered, Unavailable if something cannot be reached.
        """
        if name in packaged.PACKAGED:
            return self._packaged(name)
        if "://" in name:
            return self._fetched(name, ModelSource(name=name, address=name))
        if name.startswith(("/", "./", "../", "~/")) or name in (".", ".."):
            return _checked(Path(name).expanduser().absolute(), name)
        if _CATALOG_VERSION.fullmatch(name):
            return self._registered(name)
        if _HUB_ID.fullmatch(name):
            place = self._cache / "hub" / name.replace("/", "--")
            return _checked(cache.entry(place, name, lambda to: hub.download(name, to, self._hub_endpoint)), name)
        raise not_found("model", name, packaged.PACKAGED, param="model")

    def check(self, name: str) -> None:
        """Raise NotFound with what exists, or BadRequest, for a name that cannot be one; nothing is fetched."""
        if name.startswith(("/", "./", "../", "~/")) or name in (".", ".."):
            _checked(Path(name).expanduser().absolute(), name)
        elif _CATALOG_VERSION.fullmatch(name):
            if self._catalog_version is not None:
                self._catalog_version(name)
        elif name not in packaged.PACKAGED and "://" not in name and not _HUB_ID.fullmatch(name):
            raise not_found("model", name, packaged.PACKAGED, param="model")

    def local(self, name: str) -> Path | None:
        """The folder that `resolve` would give, if it is on this machine already; nothing is fetched or checked."""
        if name in packaged.PACKAGED:
            model = packaged.PACKAGED[name]
            converted = self._cache / "packaged" / f"{name}-{model.version}"
            return packaged.find(name) if model.form == "folder" else _there(converted)
        if "://" in name:
            return _there(self._fetched_place(ModelSource(name=name, address=name)))
        if name.startswith(("/", "./", "../", "~/")) or name in (".", ".."):
            return _there(Path(name).expanduser().absolute())
        if _CATALOG_VERSION.fullmatch(name) and self._catalog_version is not None:
            source = self._catalog_version(name)
            if "://" in source.address:
                return _there(self._fetched_place(source))
            return _there(self._storage.local_path(source.address))
        return _there(self._cache / "hub" / name.replace("/", "--")) if _HUB_ID.fullmatch(name) else None

    def _packaged(self, name: str) -> Path:
        source, model = packaged.find(name), packaged.PACKAGED[name]
        if model.form == "folder":
            return source
        place = self._cache / "packaged" / f"{name}-{model.version}"
        return cache.entry(place, name, lambda to: convert_gguf(source, to, model.max_tokens))

    def _registered(self, name: str) -> Path:
        if self._catalog_version is None:
            raise Unavailable(f"model {name!r} is a registered version, but there is no catalog to ask for it")
        source = self._catalog_version(name)
        if source.pickles and not source.may_run_code:
            raise PermissionDenied(
                f"model {source.name!r} has files that run code when they are loaded: {[*source.pickles[:20]]}; to "
                f"allow that: {'; '.join(source.allow_with) or 'grant EXECUTE UNSAFE on it'}",
                param="model",
                code="unsafe_model",
            )
        if "://" not in source.address:
            folder = _checked(self._storage.local_path(source.address), name)
            cache.verify(folder, source.name, source.checksums)
            return folder
        return self._fetched(name, source)

    def _fetched_place(self, source: ModelSource) -> Path:
        # The checksums are part of the key: the same name in another catalog, or made anew, is another entry.
        key = repr((source.address.rstrip("/"), sorted(source.checksums.items())))
        last = re.sub(r"[^A-Za-z0-9._-]+", "-", source.address.rstrip("/").rpartition("/")[2])
        return self._cache / "fetched" / f"{last}-{hashlib.sha256(key.encode()).hexdigest()[:24]}"

    def _fetched(self, name: str, source: ModelSource) -> Path:
        place = self._fetched_place(source)

        def make(folder: Path) -> None:
            self._storage.download(source.address, folder)
            _checked(folder, name)
            cache.verify(folder, source.name, source.checksums)
            (folder / cache.MANIFEST).unlink(missing_ok=True)

        return cache.entry(place, source.name, make)


def _there(folder: Path) -> Path | None:
    return folder if any((folder / name).is_file() for name in _MARKS) else None


def _checked(folder: Path, name: str) -> Path:
    """The folder, if it holds a model, an adapter or a model of MLflow's."""
    if not folder.is_dir():
        raise NotFound(f"no folder {str(folder)!r} for model {name!r}", param="model", code="model_not_found")
    if not any((folder / name).is_file() for name in _MARKS):
        there = sorted(path.name for path in folder.iterdir())[:20]
        raise BadRequest(
            f"{name!r} is no model folder: it has none of {[*_MARKS]}; it holds {there}",
            param="model",
        )
    return folder


def convert_gguf(gguf: Path, folder: Path, max_tokens: int) -> None:
    """Convert in a process of its own; raises Unavailable with what it said if it fails."""
    free = shutil.disk_usage(folder.parent).free
    needed = 4 * gguf.stat().st_size  # bf16 has about four times the bits of the smallest quantization in use here
    if free < needed:
        raise Unavailable(
            f"converting {gguf.name} needs {needed:,} bytes on the disk of {folder.parent}; {free:,} are free"
        )
    program = [sys.executable, "-P", convert.__file__, str(gguf), str(folder), str(max_tokens)]
    # The pipe to its standard input stays open while this process lives; its end ends the conversion.
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        told = process.stderr.read().decode(errors="replace")
        process.wait()
    if process.returncode != 0:
        raise Unavailable(f"converting {gguf.name} failed with status {process.returncode}: {told[-2000:].strip()}")
