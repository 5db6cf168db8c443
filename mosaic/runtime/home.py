"""The platform's home, its folder on this machine: who is starting or stopping it, and what runs from it."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mosaic.errors import Conflict, PlatformLocked


@contextlib.contextmanager
def hold(home: Path, doing: str) -> Iterator[None]:
    """Be the only `mosaic up` or `mosaic down` of this home; raises PlatformLocked saying who else is at it."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (home / "platform.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise PlatformLocked(
                f"{holder} is at work on {home}; wait for it, or give this platform another root"
            ) from None
        lock.truncate(0)
        lock.write(f"`mosaic {doing}` (process {os.getpid()})")
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)


def check_nothing_runs(home: Path) -> None:
    """What `up` checks first, as far as this folder tells it: without Ray, so that a refusal comes at once.

    Raises Conflict if a platform with a Ray of its own runs from here, PlatformLocked if one is starting or stopping.
    """
    with hold(home, "up"):
        record = read_record(home)
        if record is not None and record["embedded"] and head_is_alive(home):
            raise already_running(home, record)


def already_running(home: Path, record: dict[str, Any]) -> Conflict:
    return Conflict(
        f"a platform already runs from {home} at {record['base_url']}; `mosaic down` stops it", code="already_running"
    )


def head_is_alive(home: Path) -> bool:
    """Whether some process holds the lock of this home's Ray."""
    lock_file = home / "head.lock"
    if not lock_file.exists():
        return False
    with lock_file.open("r+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def read_record(home: Path) -> dict[str, Any] | None:
    """What `mosaic up` wrote about the platform of this home, or None."""
    record = home / "platform.json"
    return json.loads(record.read_text()) if record.exists() else None


def write_record(home: Path, record: dict[str, Any]) -> None:
    """Atomically; only the owner may read it."""
    partial = home / "platform.json.partial"
    partial.touch(mode=0o600)
    partial.write_text(json.dumps(record, indent=2))
    partial.rename(home / "platform.json")


def remove_record(home: Path) -> None:
    (home / "platform.json").unlink(missing_ok=True)
