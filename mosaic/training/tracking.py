"""MLflow: the record of a run, and a server for it where none is at hand."""

import ctypes
import os
import secrets
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from mosaic.errors import BadRequest, Unavailable

OWNER_TAG = "mosaic.principal"
"""The tag that says whose a run is; the platform's door to MLflow writes it."""

_PR_SET_PDEATHSIG = 1
_LONGEST_SOCKET_PATH = 95
"""The kernel takes 107 bytes; the server's own path beside it is a little longer."""


@dataclass(frozen=True)
class Tracking:
    """Where runs are recorded."""

    uri: str
    """An MLflow server's address."""
    token: Callable[[], str] | None = None
    """Gives what each call is signed with; without it MLflow's own environment variables say."""
    owner: str | None = None
    """Whose the runs are to be, which the platform's own token may say."""


class RunRecord:
    """One MLflow run. Without a place for it nothing is recorded and `run_id` is None."""

    def __init__(
        self,
        tracking: Tracking | None,
        *,
        experiment: str,
        name: str | None,
        params: Mapping[str, Any],
        tables: Mapping[str, str],
    ) -> None:
        """`tables` are the inputs: context ("training", "evaluation") to `catalog.schema.table@version`."""
        self.run_id: str | None = None
        self._name = name
        if tracking is None:
            return
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag  # heavy, and not always needed

        self._store = _store(tracking.uri, tracking.token)
        tags = [RunTag(OWNER_TAG, tracking.owner)] if tracking.owner else []
        run_id = self._store.create_run(self._experiment_id(experiment), "", _now(), tags, name).info.run_id
        self._store.log_batch(run_id, [], [Param(key, str(value)[:6000]) for key, value in params.items()], [])
        inputs = []
        for context, table in tables.items():
            table_name, _, version = table.partition("@")
            dataset = Dataset(
                name=table_name, digest=f"v{version}", source_type="delta", source=f'{{"table": "{table}"}}'
            )
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
        self._store.log_inputs(run_id, inputs)
        self.run_id = run_id

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of a step."""
        self.log_all([(step, metrics)])

    def log_all(self, steps: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Record the metrics of several steps in one request."""
        if self.run_id is None:
            return
        from mlflow.entities import Metric

        now = _now()
        metrics = [Metric(key, value, now, step) for step, values in steps for key, value in values.items()]
        for start in range(0, len(metrics), 1000):
            self._store.log_batch(self.run_id, metrics[start : start + 1000], [], [])

    def finish(self, status: str) -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        if self.run_id is not None:
            from mlflow.entities import RunStatus

            self._store.update_run_info(self.run_id, RunStatus.from_string(status), _now(), self._name)

    def _experiment_id(self, name: str) -> str:
        """The experiment's, made if it is not there; two runs that make it at once get the same."""
        from mlflow.exceptions import MlflowException

        known = self._store.get_experiment_by_name(name)
        if known is None:
            try:
                return str(self._store.create_experiment(name))
            except MlflowException as error:
                known = self._store.get_experiment_by_name(name)
                if known is None:
                    raise error
        return str(known.experiment_id)


def _store(uri: str, token: Callable[[], str] | None) -> Any:
    """MLflow's client of a server's API, with a token that is in no environment variable."""
    from mlflow.store.tracking.rest_store import RestStore
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import MlflowHostCreds

    return RestStore(lambda: MlflowHostCreds(uri, token=token()) if token else get_default_host_creds(uri))


def _now() -> int:
    return int(time.time() * 1000)


class MlflowServer:
    """An MLflow server on a Unix socket as a child of this process, with a SQLite store and a folder for artifacts.

    A thread of its own starts it and starts it again when it dies; it ends with this process, however that ends. It
    asks for no password, so its socket lies in a folder that only this user enters: whoever exposes it puts a guard in
    front.
    """

    def __init__(self, folder: Path, socket: Path, *, timeout_seconds: float = 90.0) -> None:
        """Start and wait until it answers; raises Unavailable, with the log's end, if it does not in time.

        `socket` is where it answers: a path of at most 95 bytes. Raises BadRequest for a longer one or for a folder of
        it that others may enter.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "artifacts").mkdir(exist_ok=True)
        self.socket = socket
        _check_socket(socket)
        self._folder = folder
        self._log = folder / "server.log"
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        # The kernel ends the child when the thread that started it ends, so that thread lives as long as the server.
        self._keeper = threading.Thread(target=self._keep, name="mlflow-server", daemon=True)
        self._keeper.start()
        self._wait(timeout_seconds)

    @property
    def process_id(self) -> int | None:
        """The child's process id; None between two lives of it."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def is_healthy(self) -> bool:
        """Whether it answers now."""
        return _answers(self.socket)

    def stop(self) -> None:
        """End the server and wait for it."""
        self._stopping.set()
        self._keeper.join(timeout=20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait(self, timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        while not self.is_healthy():
            if time.monotonic() > deadline:
                self.stop()
                end = self._log.read_text(errors="replace")[-800:] if self._log.exists() else ""
                raise Unavailable(
                    f"MLflow did not answer on {self.socket} within {timeout_seconds:.0f} s; its log ends: {end}"
                )
            time.sleep(0.2)

    def _keep(self) -> None:
        pause = 0.5
        while not self._stopping.is_set():
            began = time.monotonic()
            # A server removes its socket's path when it ends, also when that is late and another has taken over; so
            # each has a path of its own, and the one that answers is moved to where it is looked for.
            own = self.socket.with_name(f"{self.socket.name[:3]}-{secrets.token_hex(3)}")
            with self._log.open("ab") as log:
                self._process = self._start(log, own)
                moved = False
                while self._process.poll() is None and not self._stopping.wait(0.2):
                    if not moved and own.exists() and _answers(own):
                        own.replace(self.socket)
                        moved = True
            _end_group(self._process)
            pause = 0.5 if time.monotonic() - began > 60 else min(pause * 2, 30)
            self._stopping.wait(pause)

    def _start(self, log: Any, own: Path) -> "subprocess.Popen[bytes]":
        store = f"sqlite:///{self._folder / 'mlflow.db'}"
        command = ["env", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false", "MLFLOW_DISABLE_TELEMETRY=true"]
        command += [sys.executable, "-m", "mlflow", "server", "--uvicorn-opts", shlex.join(["--uds", str(own)])]
        command += ["--backend-store-uri", store, "--artifacts-destination", str(self._folder / "artifacts")]
        command += ["--serve-artifacts", "--workers", "1"]
        libc = ctypes.CDLL(None)

        def end_with_parent() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, preexec_fn=end_with_parent)


def _check_socket(socket: Path) -> None:
    """Make the socket's folder; raises BadRequest unless it is this user's alone."""
    if len(os.fsencode(socket)) > _LONGEST_SOCKET_PATH:
        raise BadRequest(f"socket {str(socket)!r} is longer than {_LONGEST_SOCKET_PATH} bytes", param="socket")
    socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = socket.parent.lstat()
    if not stat.S_ISDIR(folder.st_mode) or folder.st_uid != os.getuid() or folder.st_mode & 0o077:
        raise BadRequest(f"folder {str(socket.parent)!r} must be this user's alone (mode 0700)", param="socket")


def _answers(socket: Path) -> bool:
    """Whether a server on that socket says that it is well."""
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), timeout=2) as client:
            return client.get("http://localhost/health").status_code == 200
    except httpx.TransportError:
        return False


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """End a server and what it started, politely first."""
    for number, seconds in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=seconds)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
