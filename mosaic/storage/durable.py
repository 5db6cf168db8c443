"""Local files and folders that are there wholly or not at all, also after a power cut.

Written beside their place under a temporary name, flushed to the disk, then renamed; the folder that holds the name is
flushed too, since a rename is only durable with it.
"""

import os
import secrets
import shutil
from pathlib import Path

_TEMPORARY = ".mosaic-tmp-"


def is_temporary(name: str) -> bool:
    """Whether a file or folder name is that of something half-written."""
    return name.startswith(_TEMPORARY)


def temporary_sibling(path: Path) -> Path:
    """A fresh name in the same folder as `path`, on the same disk, which `is_temporary` knows."""
    return path.parent / f"{_TEMPORARY}{secrets.token_hex(6)}"


def make_folders(path: Path) -> None:
    """Make a folder and its parents, each flushed into the one above."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        flush_folder(folder.parent)


def write_file(path: Path, data: bytes) -> None:
    """Write a whole file atomically and durably."""
    make_folders(path.parent)
    temporary = temporary_sibling(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Make every file and every name below a folder durable."""
    for where, _, names in os.walk(folder, topdown=False):
        for name in names:
            descriptor = os.open(os.path.join(where, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        flush_folder(Path(where))


def put_folder(finished: Path, place: Path) -> None:
    """Move a finished folder (a `temporary_sibling` of `place`) into its place, replacing what was there.

    With nothing or an empty folder at `place` this is atomic; otherwise there is a moment without either.
    """
    flush_tree(finished)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        old = temporary_sibling(place)
        place.rename(old)
        finished.rename(place)
        remove(old)
    else:
        finished.rename(place)
    flush_folder(place.parent)


def remove(path: Path) -> None:
    """Remove a file or a whole folder; a missing one is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
