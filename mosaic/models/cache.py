"""Entries of the model cache: folders that are there wholly or not at all, made once however many processes ask.

An entry is made under a temporary name while its lock is held, and renamed into place with a `manifest.json` of its
name and the SHA-256 of each file. What a killed process left half-made is removed by the next one that makes the entry.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from mosaic.errors import Conflict, Unavailable
from mosaic.storage import durable

MANIFEST = "manifest.json"

_LOCK_SECONDS = 1800


def entry(place: Path, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `place`, filled by `make(folder)` if it is not there; raises Unavailable after half an hour's wait."""
    if (place / MANIFEST).is_file():
        return place
    durable.make_folders(place.parent)
    work = place.parent / f".making-{place.name}"
    try:
        with FileLock(place.parent / f".{place.name}.lock", timeout=_LOCK_SECONDS):
            if (place / MANIFEST).is_file():
                return place
            durable.remove(work)
            work.mkdir()
            try:
                content = work / "content"
                make(content)
                manifest = {"name": name, "files": digests(content)}
                (content / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True))
                durable.put_folder(content, place)
            finally:
                durable.remove(work)
    except Timeout:
        raise Unavailable(f"another process has been making {place} for {_LOCK_SECONDS} seconds") from None
    return place


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, in hexadecimal by relative path; without a manifest at its top."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / MANIFEST:
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def verify(folder: Path, name: str, checksums: Mapping[str, str]) -> None:
    """Raises Conflict unless the folder holds exactly these files; without any checksums nothing is checked."""
    if not checksums:
        return
    found = digests(folder)
    expected = {path: digest for path, digest in checksums.items() if path != MANIFEST}
    if found != expected:
        wrong = {
            "missing": sorted(expected.keys() - found.keys()),
            "not registered": sorted(found.keys() - expected.keys()),
            "changed": sorted(path for path in expected.keys() & found.keys() if expected[path] != found[path]),
        }
        told = "; ".join(f"{kind}: {paths}" for kind, paths in wrong.items() if paths)
        raise Conflict(
            f"the files of model {name!r} are not those that were registered; {told}", code="checksum_mismatch"
        )
