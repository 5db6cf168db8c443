"""Packages that a custom model needs beyond the platform's own: installed where its replica starts, and only for it.

Ray's `runtime_env={"pip": ...}` clones the whole virtual environment for each list of packages, gigabytes for one small
wheel. Here pip says what is missing beside what is installed, and that alone goes into a folder of its own, which comes
first on the replica's path.
"""

import hashlib
import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mosaic.errors import EngineFailed
from mosaic.models import cache

_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install")
_SECONDS = 900
_LONGEST_REASON = 400


def use(requirements: Sequence[str]) -> None:
    """Have this process import them first; raises EngineFailed with pip's reason.

    A module that is imported already stays what it is.
    """
    if requirements:
        sys.path.insert(0, str(installed(requirements, Path.home() / ".cache" / "mosaic" / "packages")))
        importlib.invalidate_caches()


def installed(requirements: Sequence[str], place: Path) -> Path:
    """The folder with what the requirements lack here, made once on a machine for the same ones, in `place`."""
    key = repr((sys.version_info[:2], [(one, _digest(one)) for one in requirements]))
    name = hashlib.sha256(key.encode()).hexdigest()[:24]

    def make(folder: Path) -> None:
        folder.mkdir()
        told = _run(["--dry-run", "--quiet", "--report", "-", "--", *requirements], requirements)
        missing = [_pinned(one) for one in json.loads(told)["install"]]
        if missing:
            _run(["--quiet", "--no-compile", "--no-deps", "--target", str(folder), "--", *missing], requirements)

    return cache.entry(place / name, f"packages {' '.join(requirements)}", make)


def _pinned(found: dict[str, Any]) -> str:
    """A package of pip's installation report exactly as it was found."""
    name, version = found["metadata"]["name"], found["metadata"]["version"]
    return f"{name} @ {found['download_info']['url']}" if found["is_direct"] else f"{name}=={version}"


def _digest(requirement: str) -> str:
    """Of a file that is named itself, whose content may change; empty for a package by name."""
    path = Path(requirement)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _run(arguments: Sequence[str], requirements: Sequence[str]) -> str:
    try:
        ended = subprocess.run([*_PIP, *arguments], capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise EngineFailed(f"engine.pip = {[*requirements]}: pip did not end within {_SECONDS} s") from None
    if ended.returncode != 0:
        errors = [line.removeprefix("ERROR: ") for line in ended.stderr.splitlines() if line.startswith("ERROR: ")]
        told = "; ".join(errors) or ended.stderr.strip() or f"pip ended with status {ended.returncode}"
        raise EngineFailed(f"engine.pip = {[*requirements]} cannot be installed: {told[:_LONGEST_REASON]}")
    return ended.stdout
