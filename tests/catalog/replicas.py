"""Replicas of control's catalog routes: processes on ports of this machine that a test starts and kills."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from tests.local import free_ports

_START_SECONDS = 60
BASE = "/api/2.1/unity-catalog"


class Replica:
    """A process that serves one catalog; killed without warning, it starts again on the same port."""

    def __init__(self, url: str, root: Path, port: int) -> None:
        self._command = [sys.executable, str(Path(__file__).with_name("serve.py")), url, str(root), str(port)]
        self.address = f"http://127.0.0.1:{port}"
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command)

    def wait_until_ready(self) -> None:
        """Until it answers, be it with a refusal."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            assert self._process.poll() is None and time.monotonic() < deadline, "the replica did not come up"
            try:
                assert httpx.get(f"{self.address}{BASE}/catalogs").status_code == 401
                return
            except httpx.TransportError:
                time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()


@contextmanager
def replicas(url: str, root: Path, count: int) -> Iterator[list[Replica]]:
    """That many at once, ready; killed at the end."""
    with ExitStack() as stack:
        started = [Replica(url, root, port) for port in free_ports(count)]
        for replica in started:
            stack.callback(replica.kill)
        for replica in started:
            replica.wait_until_ready()
        yield started
