"""A PostgreSQL server of one's own in a temporary folder, for tests and benchmarks; it ends with the process that began
it."""

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from mosaic.errors import Unavailable

OLDEST = 15
USER = "postgres"
"""Who owns every database; where root starts the server, also the account that runs it: the server refuses root."""

_START_SECONDS, _STOP_SECONDS = 30, 30


class PostgresServer:
    """Listens on a Unix socket in a folder that its own account and root alone may enter, so it asks for no password.

    With `durable` false it leaves writing to the disk to the operating system: whatever is killed nothing is lost, but
    a power cut could lose what was committed.
    """

    def __init__(self, *, durable: bool = False, max_connections: int = 100) -> None:
        """Raises Unavailable if PostgreSQL is not installed, is too old, or does not start."""
        self._programs = _programs()
        self._settings = {
            "listen_addresses": "",
            "max_connections": str(max_connections),
            "fsync": "on" if durable else "off",
            "full_page_writes": "on" if durable else "off",
        }
        self.folder = Path(tempfile.mkdtemp(prefix="mosaic-pg-"))
        self._process: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            account = _account()
            os.chown(self.folder, account.pw_uid, account.pw_gid)
        try:
            # Sorted as in English, as a company's server may well be: what relies on another order has to say so.
            places = ["--pgdata", str(self.folder / "data"), "--username", USER, "--auth", "trust", "--no-sync"]
            order = ["--encoding", "UTF8", "--locale-provider", "icu", "--icu-locale", "en-US", "--locale", "C.UTF-8"]
            made = subprocess.run(
                [*_as_owner(), str(self._programs / "initdb"), *places, *order],
                cwd=self.folder,
                capture_output=True,
                text=True,
            )
            if made.returncode:
                raise Unavailable(f"PostgreSQL could not make a database: {made.stderr.strip()}")
            self.start()
        except BaseException:
            self.close()
            raise

    def url(self, database: str) -> str:
        """The address of a database for SQLAlchemy."""
        return f"postgresql+psycopg://{USER}@/{database}?host={self.folder}"

    def sql(self, statement: str, database: str = USER) -> list[tuple[Any, ...]]:
        """Run one statement as the owner of everything; what it answers."""
        with psycopg.connect(host=str(self.folder), user=USER, dbname=database, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        """Run the server and wait until it answers."""
        settings = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(self._programs / "postgres"), "-D", str(self.folder / "data"), "-k", str(self.folder), *settings]
        log = self.folder / "log"
        with log.open("ab") as output:
            # Should this process be killed, the server is told to stop by the kernel.
            self._process = subprocess.Popen(
                [*_as_owner("--pdeathsig", "INT"), *command], cwd=self.folder, stdout=output, stderr=output
            )
        deadline = time.monotonic() + _START_SECONDS
        ready = [str(self._programs / "pg_isready"), "--quiet", "--host", str(self.folder), "--username", USER]
        while subprocess.run(ready).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable(f"PostgreSQL did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End the server and its clients' connections at once; what was committed stays."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait()

    def crash(self) -> None:
        """End the server as a crash does: nothing is tidied up, and the next start recovers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait()

    def close(self) -> None:
        """Stop the server and delete all of it."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def _programs() -> Path:
    """The folder of PostgreSQL's programs: Debian keeps those of the server out of the PATH."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: folder.parent.name.zfill(4))
    found = shutil.which("postgres")
    folders = [folder for folder in debian if (folder / "postgres").is_file()]
    folder = folders[-1] if folders else Path(found).resolve().parent if found else None
    if folder is None:
        raise Unavailable(f"PostgreSQL {OLDEST} or newer is not installed; on Debian: apt-get install postgresql")
    told = subprocess.run([str(folder / "postgres"), "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"\d+", told)
    if version is None or int(version[0]) < OLDEST:
        raise Unavailable(f"PostgreSQL in {folder} is {told.strip()!r}; mosaic is tested with {OLDEST} or newer")
    return folder


def _account() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(USER)
    except KeyError:
        raise Unavailable(f"PostgreSQL does not run as root, and there is no account {USER!r} to run it") from None


def _as_owner(*options: str) -> list[str]:
    """The command that runs another one as the owner of the folder."""
    if os.geteuid() == 0:
        options = (f"--reuid={USER}", f"--regid={_account().pw_gid}", "--init-groups", *options)
    return ["setpriv", *options] if options else []
