"""What a command does not need it does not load: Ray takes seconds."""

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Mosaic

_RUN = """
import sys
from mosaic.cli import main
try:
    main(sys.argv[1:])
finally:
    print(sorted({"ray", "ray.data", "ray.serve", "torch"} & set(sys.modules)), file=sys.stderr)
"""


def run(*arguments: str) -> tuple[int, list[str]]:
    """The exit status, and the lines of stderr; the last is what of Ray was loaded."""
    command = [sys.executable, "-c", _RUN, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    return ended.returncode, ended.stderr.splitlines()


@pytest.mark.parametrize(
    "command",
    [
        ("sql", "SELECT count(*) FROM main.docs.entries"),
        ("impact", "main.docs.entries"),
        ("table", "preview", "main.docs.entries"),
        ("vacuum", "main.docs.entries", "--dry-run"),
        ("up", "--help"),
    ],
)
def test_without_ray(shared: Mosaic, command: tuple[str, ...]) -> None:
    code, lines = run(*command, "--storage", str(shared.home))
    assert (code, lines[-1]) == (0, "[]"), lines


def test_why_of_what_is_not_there_without_ray(shared: Mosaic) -> None:
    code, lines = run("why", "req_none", "--storage", str(shared.home))
    assert (code, lines[-1]) == (1, "[]"), lines


def test_a_second_up_is_refused_without_ray(tmp_path: Path) -> None:
    record = {"embedded": True, "base_url": "http://127.0.0.1:8123", "platform_id": "plt_x", "pid": 1}
    (tmp_path / "platform.json").write_text(json.dumps(record))
    with (tmp_path / "head.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, lines = run("up", "--storage", str(tmp_path))
    assert (code, lines[-1]) == (1, "[]"), lines
    told = f"mosaic: a platform already runs from {tmp_path} at http://127.0.0.1:8123; `mosaic down` stops it"
    assert lines[-2] == told
    with (tmp_path / "platform.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, lines = run("up", "--storage", str(tmp_path))
    assert code == 1 and lines[-1] == "[]" and "is at work on" in lines[-2]
