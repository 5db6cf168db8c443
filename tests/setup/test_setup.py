"""The set-up from outside: scripts/setup.sh run for real, with tiny packages from an index on loopback."""

import base64
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = [f"part-{number:02}" for number in range(30)]


class Index:
    """A package index of tiny wheels; `published` says which it offers, `fetched` which were downloaded."""

    def __init__(self, folder: Path) -> None:
        self.published: set[str] = set()
        self.fetched: list[str] = []
        self.failing: set[str] = set()
        self.release = threading.Event()
        self.release.set()
        self.stalled = threading.Event()
        wheels = {name: make_wheel(folder, name).read_bytes() for name in NAMES}
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                _, kind, name, *_ = self.path.split("/")
                if name not in index.published:
                    return self.send_error(404)
                if kind == "files" and name in index.failing:
                    return self.send_error(503)
                if kind == "files":
                    index.fetched.append(name)
                    if not index.release.is_set():
                        index.stalled.set()
                        index.release.wait(60)
                    body, content_type = wheels[name], "application/octet-stream"
                else:
                    file = f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
                    body, content_type = f'<a href="/files/{name}/{file}">{file}</a>'.encode(), "text/html"
                self.send_response(200)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                try:
                    self.wfile.write(body)
                except BrokenPipeError:
                    self.close_connection = True  # the client was killed
                return None

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/simple"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def make_wheel(folder: Path, name: str) -> Path:
    module = name.replace("-", "_")
    files = {
        f"{module}.py": f'"""{name}"""\n',
        f"{module}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{module}-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},sha256={digest(text)},{len(text)}\n" for path, text in files.items())
    files[f"{module}-1.0.dist-info/RECORD"] = record + f"{module}-1.0.dist-info/RECORD,,\n"
    wheel = folder / f"{module}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    folder = tmp_path / "wheels"
    folder.mkdir()
    running = Index(folder)
    yield running
    running.close()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.lock"
    path.write_text("# tiny\n" + "".join(f"{name}==1.0\n" for name in NAMES))
    return path


def environment(index_address: str = "http://127.0.0.1:9/simple", **more: str) -> dict[str, str]:
    """The caller's environment with nothing of pip's settings but the index."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index_address, "PIP_RETRIES": "1", "PIP_NO_CACHE_DIR": "1"}
    return {**plain, **pip, "NO_PROXY": "*", "PYTHON": sys.executable, **more}


def command(*arguments: str | Path) -> list[str]:
    return [str(ROOT / "scripts/setup.sh"), "--packages-only", *map(str, arguments)]


def run(*arguments: str | Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), env=env, capture_output=True, text=True, timeout=60)


def the_line(ended: subprocess.CompletedProcess[str]) -> str:
    """A set-up that fails says exactly one line on stderr."""
    assert ended.returncode == 1, ended
    assert ended.stderr.startswith("set-up: ") and ended.stderr.count("\n") == 1, ended.stderr
    return ended.stderr


def test_a_wrong_python_is_said_in_one_line(tmp_path: Path, lock: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 3.9\n")
    python.chmod(0o755)
    line = the_line(run("--venv", tmp_path / "env", "--lock", lock, env=environment(PYTHON=str(python))))
    assert "needs Python 3.11" in line and f"{python} is 3.9" in line
    line = the_line(run("--venv", tmp_path / "env", "--lock", lock, env=environment(PYTHON=str(tmp_path / "absent"))))
    assert f"{tmp_path / 'absent'} does not run" in line
    assert not (tmp_path / "env").exists()


def test_a_missing_compiler_is_said_in_one_line(tmp_path: Path, lock: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    line = the_line(run("--venv", tmp_path / "env", "--lock", lock, env=environment(PATH=str(tools))))
    assert "gcc is missing" in line


def test_too_little_disk_is_said_in_one_line(tmp_path: Path, lock: Path) -> None:
    ended = run("--venv", tmp_path / "env", "--lock", lock, "--minimum-free-gb", "999999", env=environment())
    assert "needs 999999.0 GB of free disk" in the_line(ended)


def test_files_of_others_are_not_deleted(tmp_path: Path, lock: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    ended = run("--venv", tmp_path / "mine", "--lock", lock, env=environment())
    assert "holds other files" in the_line(ended)
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"


def test_a_lock_that_pins_nothing_is_refused(tmp_path: Path, lock: Path) -> None:
    lock.write_text("numpy>=2\n")
    ended = run("--venv", tmp_path / "env", "--lock", lock, env=environment())
    assert "'numpy>=2' is not of the form name==version" in the_line(ended)
    ended = run("--venv", tmp_path / "env", "--lock", tmp_path / "absent.lock", env=environment())
    assert f"cannot read {tmp_path / 'absent.lock'}" in the_line(ended)


def test_failed_downloads_and_cuts_are_resumed(tmp_path: Path, lock: Path, index: Index) -> None:
    venv = tmp_path / "env"
    where = ("--venv", venv, "--lock", lock)

    line = the_line(run(*where, env=environment()))
    assert "could not download part-00==1.0" in line and "Connection refused" in line
    assert "run it again" in line and str(venv / "setup.log") in line

    index.published = set(NAMES[:-1])
    line = the_line(run(*where, env=environment(index.address)))
    assert "could not download part-29==1.0 (the package index does not offer it" in line
    assert set(NAMES[:25]) <= set(index.fetched)

    index.published, index.failing = set(NAMES), {"part-27"}
    line = the_line(run(*where, env=environment(index.address)))
    assert "could not install part-27==1.0 (" in line and "503" in line

    # Killed, with its pip, while it waits for a download.
    index.failing.clear()
    index.fetched.clear()
    index.release.clear()
    cut = subprocess.Popen(
        command(*where), env=environment(index.address), start_new_session=True, stdout=subprocess.DEVNULL
    )
    assert index.stalled.wait(30)
    os.killpg(cut.pid, signal.SIGKILL)
    assert cut.wait(10) == -signal.SIGKILL
    index.release.set()
    # And a package that a cut left half installed.
    record = next(venv.glob("lib/python3.11/site-packages/part_03-1.0.dist-info/RECORD"))
    record.unlink()

    ended = run(*where, env=environment(index.address))
    assert ended.returncode == 0, ended.stderr
    assert "packages: 24 of 30" in ended.stdout and "packages: 30 of 30" in ended.stdout
    assert set(index.fetched) == {"part-03", *NAMES[25:]}
    assert record.is_file()
    check = subprocess.run([venv / "bin/python", "-c", "import part_03, part_29"], capture_output=True, text=True)
    assert check.returncode == 0, check.stderr

    # Done is done: no index, and no time.
    started = time.monotonic()
    ended = run(*where, env=environment())
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert time.monotonic() - started < 2

    # A lock that changed is followed, also where it names less.
    lock.write_text("".join(f"{name}==1.0\n" for name in NAMES[:-1]))
    ended = run(*where, env=environment())
    assert ended.returncode == 0 and "removing what the lock does not name: part-29" in ended.stdout
    assert not list(venv.glob("lib/python3.11/site-packages/part_29*"))


def test_two_set_ups_at_once_make_one_environment(tmp_path: Path, lock: Path, index: Index) -> None:
    index.published = set(NAMES)
    together = [
        subprocess.Popen(
            command("--venv", tmp_path / "env", "--lock", lock),
            env=environment(index.address),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60) for process in together]
    assert [process.returncode for process in together] == [0, 0], said
    assert sorted(index.fetched) == NAMES
    assert sum("waiting for another set-up" in stdout for stdout, _ in said) == 1


def test_the_lock_check_names_what_has_drifted(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/check_lock.py", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    lock = (ROOT / "requirements-cpu.lock").read_text()
    (tmp_path / "requirements-cpu.lock").write_text(lock.replace("click==", "clack==").replace("rich==15", "rich==14"))
    (tmp_path / "mosaic").mkdir()
    (tmp_path / "mosaic/room.py").write_text("import sympy\nimport json\n\nfrom mosaic.errors import NotFound\n")

    check = [sys.executable, str(tmp_path / "scripts/check_lock.py")]
    ended = subprocess.run(check, capture_output=True, text=True)
    assert ended.returncode == 1
    problems = ended.stderr.splitlines()
    assert any("click is missing: " in problem for problem in problems)
    assert any("clack is needed by nothing" in problem for problem in problems)
    assert any("rich==14" in problem and "is installed as 15" in problem for problem in problems)
    assert any(
        "mosaic/room.py imports 'sympy', which pyproject.toml does not declare" in problem for problem in problems
    )
    assert not any("json" in problem for problem in problems)
