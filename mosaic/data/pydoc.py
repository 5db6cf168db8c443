"""The reference documentation inside Python modules as rows: real text that every machine has.

`module_names()` lists the standard library; `module_names("pyarrow")` an installed package. `read_modules` imports them
in Ray Data tasks, so that what a module does on import stays out of the caller's process, and gives one row per
documented module, class, function, method or property. A module that cannot be imported gives one row with the `error`.
"""

import builtins
import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import io
import pkgutil
import platform
import re
import sys
import sysconfig
import types
import warnings
from collections.abc import Iterable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data

from mosaic.data import manifest
from mosaic.errors import BadRequest

MAX_TEXT_CHARACTERS = 2000
_TEST_PARTS = frozenset({"test", "tests", "idle_test", "testing"})
# These open windows or browsers, print, or start servers when they are imported.
_ACT_ON_IMPORT = frozenset({"antigravity", "this", "idlelib", "turtledemo"})
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_ROOTS = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib", "platstdlib"))
"""Folders in which modules lie; purelib is below stdlib, so it comes first."""
_ROUTINES = (types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType, types.ClassMethodDescriptorType)


def entry_schema() -> pa.Schema:
    """The columns of an entry, `entry_id` being its key; `error` is set only on the row of a module that failed."""
    text = pa.string()
    return pa.schema(
        [
            pa.field("entry_id", text, nullable=False),
            pa.field("module", text, nullable=False),
            ("kind", text),
            ("signature", text),
            ("summary", text),
            ("text", text),
            ("truncated", pa.bool_()),
            ("source", text),
            ("sha256", text),
            ("error", text),
        ]
    )


def module_names(package: str | None = None) -> list[str]:
    """Public modules of the standard library (or of one installed package), sorted; nothing is imported.

    Left out: private modules, tests, and modules that act when imported. Raises BadRequest for an unknown package.
    """
    names: set[str] = set()
    for top in sorted(sys.stdlib_module_names) if package is None else [package]:
        if not _is_wanted(top):
            continue
        spec = importlib.util.find_spec(top)
        if spec is None:
            if package is not None:
                raise BadRequest(f"package {package!r} is not installed in this Python")
            continue  # part of the standard library on another operating system
        names.add(top)
        names.update(_submodules(top, list(spec.submodule_search_locations or [])))
    return sorted(names)


def source_files(names: Iterable[str]) -> pa.Table:
    """The file of each module with its checksum, as a manifest lists them (`manifest.py`); nothing is imported.

    What is built into the interpreter has the interpreter as its file; names that are no modules are left out.
    """
    rows = []
    for name in names:
        file = _file_of(name)
        if file is not None:
            sha256, size = _checksum(file)
            shown = next((str(file.relative_to(root)) for root in _ROOTS if file.is_relative_to(root)), file.name)
            rows.append({"uri": f"{_origin(name)}/{name}", "sha256": sha256, "file": shown, "bytes": size})
    return pa.Table.from_pylist(rows, schema=manifest.SCHEMA)


def read_modules(names: Iterable[str], *, num_cpus: float = 0.25) -> ray.data.Dataset:
    """The entries of all these modules, columns as in `entry_schema()`, in no fixed order (sort by `entry_id`)."""
    rows = [{"module": name} for name in names]
    if not rows:
        raise BadRequest("names = []: at least one module is needed")
    # Few blocks: starting a task costs more than most modules. Dealt out in turn, as the costly ones are neighbours.
    num_blocks = min(len(rows), 8)
    dealt = [row for start in range(num_blocks) for row in rows[start::num_blocks]]
    modules = ray.data.from_items(dealt, override_num_blocks=num_blocks)
    return modules.map_batches(_read_batch, batch_format="pyarrow", batch_size=None, num_cpus=num_cpus)


def entries(module_name: str) -> Iterator[dict[str, Any]]:
    """The documented public objects that this module itself defines, sorted by name; imports the module.

    Raises whatever the import raises. `text` is capped at 2,000 characters (`truncated` says so); `sha256` is of the
    whole docstring.
    """
    module = importlib.import_module(module_name)
    seen: set[str] = set()
    for kind, qualified_name, found, docstring in _walk_module(module):
        if qualified_name in seen or not isinstance(docstring, str) or not docstring.strip():
            continue
        seen.add(qualified_name)
        text = inspect.cleandoc(docstring)
        inside = qualified_name.removeprefix(module_name).removeprefix(".")
        yield {
            "entry_id": qualified_name,
            "module": module_name,
            "kind": kind,
            "signature": _signature(found) if kind in ("class", "function", "method") else "",
            "summary": _summary(text),
            "text": text[:MAX_TEXT_CHARACTERS],
            "truncated": len(text) > MAX_TEXT_CHARACTERS,
            "source": f"{_origin(module_name)}/{module_name}" + (f"#{inside}" if inside else ""),
            "sha256": hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest(),
            "error": None,
        }


def _file_of(module_name: str) -> Path | None:
    """Found on the path, as an import would without importing the packages above; also what is frozen."""
    parts, spec, folders = module_name.split("."), None, None
    for depth in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: depth + 1]), folders)
        if spec is None:
            break
        folders = list(spec.submodule_search_locations or [])
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).resolve()
    return _interpreter() if module_name in sys.builtin_module_names else None


@functools.cache
def _interpreter() -> Path:
    """The file that has the modules which are built in."""
    library = Path(sysconfig.get_config_var("LIBDIR") or "") / str(sysconfig.get_config_var("INSTSONAME"))
    return library.resolve() if library.is_file() else Path(sys.executable).resolve()


@functools.cache
def _checksum(file: Path) -> tuple[str, int]:
    content = file.read_bytes()
    return hashlib.sha256(content).hexdigest(), len(content)


def _is_wanted(name: str) -> bool:
    parts = name.split(".")
    return (
        parts[0] not in _ACT_ON_IMPORT
        and not any(part.startswith("_") or part in _TEST_PARTS for part in parts)
        and "site-packages" not in parts
    )


def _submodules(package: str, folders: list[str]) -> Iterator[str]:
    for found in pkgutil.iter_modules(folders):
        name = f"{package}.{found.name}"
        if not _is_wanted(name):
            continue
        yield name
        if found.ispkg:
            yield from _submodules(name, [f"{folder}/{found.name}" for folder in folders])


def _read_batch(batch: pa.Table) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for name in batch["module"].to_pylist():
        try:
            with _silenced():
                rows.extend(entries(name))
        except (Exception, SystemExit) as error:  # foreign code runs here, so anything can come out; it becomes a row
            rows.append({"entry_id": name, "module": name, "error": f"{type(error).__name__}: {error}"[:500]})
    return pa.Table.from_pylist(rows, schema=entry_schema())


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def _walk_module(module: types.ModuleType) -> Iterator[tuple[str, str, Any, Any]]:
    name = module.__name__
    yield "module", name, module, module.__doc__
    for attribute, found in sorted(vars(module).items()):
        if attribute.startswith("_") or getattr(found, "__module__", None) != name:
            continue
        if inspect.isclass(found):
            yield from _walk_class(f"{name}.{attribute}", found)
        elif inspect.isroutine(found):
            yield "function", f"{name}.{attribute}", found, found.__doc__


def _walk_class(qualified_name: str, cls: type) -> Iterator[tuple[str, str, Any, Any]]:
    # `cls.__doc__` would answer with a base's docstring; the class's own is in its dictionary.
    yield "class", qualified_name, cls, vars(cls).get("__doc__")
    for attribute, found in sorted(vars(cls).items()):
        if attribute.startswith("_"):
            continue
        inner = f"{qualified_name}.{attribute}"
        if isinstance(found, staticmethod | classmethod):
            yield "method", inner, found.__func__, found.__func__.__doc__
        elif isinstance(found, property | functools.cached_property):
            yield "property", inner, found, found.__doc__
        elif isinstance(found, _ROUTINES):
            yield "method", inner, found, found.__doc__
        elif inspect.isclass(found) and getattr(found, "__qualname__", "") == f"{cls.__qualname__}.{attribute}":
            yield from _walk_class(inner, found)


def _signature(found: Any) -> str:
    try:
        # Default values may print with an address, which would differ at every run.
        return _ADDRESS.sub("", str(inspect.signature(found)))
    except (ValueError, TypeError):
        return ""  # many builtins do not tell


def _summary(text: str) -> str:
    """The first paragraph on one line, up to its first sentence's end."""
    paragraph = " ".join(text.split("\n\n", 1)[0].split())
    sentence = re.match(r"(.+?[.!?])(?:\s|$)", paragraph)
    return (sentence.group(1) if sentence else paragraph)[:300]


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def _origin(module_name: str) -> str:
    top = module_name.split(".", 1)[0]
    if top in sys.stdlib_module_names or top == builtins.__name__:
        return f"python:{platform.python_version()}"
    names = _distributions().get(top)
    return f"package:{names[0]}@{importlib.metadata.version(names[0])}" if names else f"package:{top}"
