"""Makes the environment that everything runs in: the locked packages and mosaic itself, in .venv.

Standard library only, run by Python 3.11 (scripts/setup.sh finds it). A set-up that is already done returns at once;
one that was cut off goes on where it stopped, since each group of packages is complete when the next one starts. What
stops it is said in one line, and pip's own output is in setup.log in the environment's folder.
"""

import argparse
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = ROOT / "pyproject.toml"
GROUP_SIZE = 25
STAMP = ".mosaic-ready"
MADE_FOR = ".mosaic-made-for"
LOG = "setup.log"
AGAIN = "run it again to go on from here"
# Never removed: what Python puts into a new environment, and mosaic itself.
KEPT = {"pip", "setuptools", "mosaic"}


class SetupFailed(Exception):
    """The one line that the user reads."""


@dataclass(frozen=True)
class Options:
    venv: Path
    lock: Path
    minimum_free_gb: float
    packages_only: bool


def main() -> int:
    options = parse_arguments()
    try:
        if not is_ready(options):
            set_up(options)
    except SetupFailed as failure:
        print(f"set-up: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"set-up: stopped; {AGAIN}", file=sys.stderr)
        return 130
    return 0


def parse_arguments() -> Options:
    parser = argparse.ArgumentParser(prog="setup.sh", description="Install the locked packages and mosaic.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="the environment's folder (default: .venv)")
    parser.add_argument("--lock", type=Path, default=ROOT / "requirements-cpu.lock", help="the list of packages")
    parser.add_argument("--minimum-free-gb", type=float, default=6, help="disk for a new environment (default: 6)")
    parser.add_argument("--packages-only", action="store_true", help="leave out mosaic itself, as in an image")
    given = parser.parse_args()
    return Options(given.venv.absolute(), given.lock.absolute(), given.minimum_free_gb, given.packages_only)


def is_ready(options: Options) -> bool:
    stamp = options.venv / STAMP
    return stamp.is_file() and stamp.read_text(encoding="ascii") == fingerprint(options)


def fingerprint(options: Options) -> str:
    """Changes with all that makes a set-up stale."""
    digest = hashlib.sha256(f"{identity(options)} {options.packages_only}".encode())
    for path in (options.lock, PYPROJECT):
        digest.update(read(path))
    return digest.hexdigest()


def identity(options: Options) -> str:
    """The folder and the Python: an environment survives neither a move nor another Python."""
    return f"{options.venv} {sys.base_prefix} {sys.version.split()[0]}"


def set_up(options: Options) -> None:
    started = time.monotonic()
    check_machine()
    packages = read_lock(options.lock)
    with only_one(options.venv):
        if is_ready(options):  # made by another set-up while this one waited
            return
        check_disk(options)
        make_environment(options)
        install_packages(options, packages)
        if not options.packages_only:
            say("mosaic itself")
            pip(options, "install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
        if "torch" in packages:
            check_torch(options)
        (options.venv / STAMP).write_text(fingerprint(options), encoding="ascii")
    say(f"done in {time.monotonic() - started:.0f} s")


def check_machine() -> None:
    if sys.version_info[:2] != (3, 11):
        raise SetupFailed(f"needs Python 3.11, and {sys.executable} is {sys.version.split()[0]}")
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        raise SetupFailed("Python 3.11's headers (Python.h) are missing; on Debian: apt-get install python3.11-dev")
    for compiler in ("gcc", "g++"):
        if shutil.which(compiler) is None:
            raise SetupFailed(f"{compiler} is missing; on Debian: apt-get install gcc g++")
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            raise SetupFailed(f"Python's module {module!r} is missing; on Debian: apt-get install python3.11-venv")


@contextmanager
def only_one(venv: Path) -> Iterator[None]:
    """Holds the folder against other set-ups, until this process and the pip that it started have ended in any way."""
    try:
        venv.mkdir(parents=True, exist_ok=True)
        folder = os.open(venv, os.O_RDONLY | os.O_DIRECTORY)
        os.set_inheritable(folder, True)
    except OSError as error:
        raise SetupFailed(f"cannot use the folder {venv}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another set-up in {venv}")
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def check_disk(options: Options) -> None:
    """What an earlier run has installed already is not wanted a second time."""
    present = sum(path.lstat().st_size for path in options.venv.rglob("*"))
    wanted = options.minimum_free_gb - present / 1e9
    free = shutil.disk_usage(options.venv).free / 1e9
    if free < wanted:
        raise SetupFailed(f"needs {wanted:.1f} GB of free disk for {options.venv}, and there are {free:.1f} GB")


def make_environment(options: Options) -> None:
    """A new environment, unless the folder holds one of this place and Python; other files are not ours to delete."""
    made_for = options.venv / MADE_FOR
    if made_for.is_file() and made_for.read_text(encoding="utf-8") == identity(options):
        return
    if any(options.venv.iterdir()) and not (options.venv / "pyvenv.cfg").is_file():
        raise SetupFailed(f"{options.venv} holds other files; delete it, or name another folder with --venv")
    say(f"a new environment in {options.venv}")
    command = [sys.executable, "-m", "venv", "--clear", str(options.venv)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        raise SetupFailed(f"{' '.join(command)} failed: {last_line(made.stdout + made.stderr)}")
    made_for.write_text(identity(options), encoding="utf-8")


def install_packages(options: Options, packages: dict[str, str]) -> None:
    """Brings the environment to exactly the lock."""
    installed = complete_packages(options.venv)
    superfluous = sorted(installed.keys() - packages.keys() - KEPT)
    if superfluous:
        say(f"removing what the lock does not name: {', '.join(superfluous)}")
        pip(options, "uninstall", "--yes", *superfluous)
    missing = [name for name in packages if installed.get(name) != packages[name]]
    done = len(packages) - len(missing)
    for group, settings in groups(options, missing):
        say(f"packages: {done} of {len(packages)}")
        # The flag: built apart from the environment in any case, also by a pip that would still run setup.py inside it.
        wanted = (f"{name}=={packages[name]}" for name in group)
        pip(options, "install", "--no-deps", "--use-pep517", *wanted, **settings)
        done += len(group)
    say(f"packages: {done} of {len(packages)}")


def groups(options: Options, names: list[str]) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Small groups, so that a cut loses little, with variables for pip; what is built here comes last."""
    built = set(tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["tool"]["mosaic"]["lock"]["from-source"])
    ready = [name for name in names if name not in built]
    for start in range(0, len(ready), GROUP_SIZE):
        yield ready[start : start + GROUP_SIZE], {}
    # The lock also pins what they are built with. By its file's name alone, since pip splits these variables at spaces.
    pins = {"PIP_CONSTRAINT": options.lock.name, "PIP_BUILD_CONSTRAINT": options.lock.name}
    for name in names:
        if name in built:
            yield [name], {**pins, "DS_BUILD_OPS": "0"}  # DeepSpeed compiles operators on first use, if at all


def complete_packages(venv: Path) -> dict[str, str]:
    """Name -> version, without local part, of what is installed; removes what an installation that was cut off left."""
    found = {}
    for folder in venv.glob("lib/python3.11/site-packages/*.dist-info"):
        if not (folder / "RECORD").is_file():  # pip writes it last
            shutil.rmtree(folder)
            continue
        distribution = metadata.Distribution.at(folder)
        found[normal(distribution.metadata["Name"])] = distribution.version.split("+")[0]
    return found


def pip(options: Options, *arguments: str, **settings: str) -> None:
    """Runs the environment's pip with its output in the log; a failure becomes one line that names the package."""
    log = options.venv / LOG
    settings = {**os.environ, "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **settings}
    command = [str(options.venv / "bin/python"), "-m", "pip", *arguments]
    with log.open("a+", encoding="utf-8", errors="replace") as output:
        start = output.seek(0, os.SEEK_END)
        # With the lock's descriptor: a pip that outlives this process still holds the folder.
        ended = subprocess.run(
            command,
            cwd=options.lock.parent,
            env=settings,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            close_fds=False,
        )
        output.seek(start)
        if ended.returncode:
            raise SetupFailed(f"{reason(output.read(), arguments[-1])}; {AGAIN}; pip's output: {log}")


def reason(output: str, asked: str) -> str:
    """What went wrong, in the words that help, from the output of a pip that failed at what it was asked for."""
    if unbuilt := re.search(r"Failed (?:building|to build) (?:wheel for |editable for )?(\S+)", output):
        return f"could not build {unbuilt[1]}"
    if "No space left on device" in output:
        return "the disk is full"
    if absent := re.search(r"(?:No matching distribution found for|Cannot install) (\S+)", output):
        cause = re.search(r"after connection broken by '(.*)': /", output)
        why = cause[1] if cause else "the package index does not offer it or does not answer"
        return f"could not download {absent[1]} ({why})"
    errors = re.findall(r"^ERROR: (?!Exception:)(.+)", output, re.MULTILINE)
    packages = re.findall(r"^Collecting (\S+)", output, re.MULTILINE)
    return f"could not install {packages[-1] if packages else asked} ({errors[0] if errors else last_line(output)})"


def check_torch(options: Options) -> None:
    """The index decides which build of torch a machine gets; a CUDA build does not load without CUDA's libraries."""
    say("does torch load")
    ended = subprocess.run([str(options.venv / "bin/python"), "-c", "import torch"], capture_output=True, text=True)
    if ended.returncode:
        raise SetupFailed(
            f"torch does not load ({last_line(ended.stderr)}); if it is a CUDA build, name PyTorch's index of CPU"
            f" builds in PIP_EXTRA_INDEX_URL, run {options.venv}/bin/pip uninstall --yes torch, and {AGAIN}"
        )


def read_lock(path: Path) -> dict[str, str]:
    packages = {}
    for line in read(path).decode().splitlines():
        text = line.split("#")[0].strip()
        name, equals, version = text.partition("==")
        if text and not (name and equals and version):
            raise SetupFailed(f"{path}: {text!r} is not of the form name==version")
        if text:
            packages[normal(name)] = version
    return packages


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SetupFailed(f"cannot read {path}: {error.strerror}") from None


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]


def say(stage: str) -> None:
    print(f"set-up: {stage}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
