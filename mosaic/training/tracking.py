"""MLflow: the record of a run, and a server for it where none is at hand."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from mosaic.errors import Unavailable

_PR_SET_PDEATHSIG = 1


class RunRecord:
    """One MLflow run. With no address nothing is recorded and `run_id` is None."""

    def __init__(
        self,
        tracking_uri: str | None,
        *,
        experiment: str,
        name: str | None,
        params: Mapping[str, Any],
        tables: Mapping[str, str],
    ) -> None:
        """`tables` are the inputs: context ("training", "evaluation") to `catalog.schema.table@version`."""
        self.run_id: str | None = None
        if tracking_uri is None:
            return
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param  # heavy, and not every run is recorded
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=tracking_uri)
        known = self._client.get_experiment_by_name(experiment)
        experiment_id = known.experiment_id if known else self._client.create_experiment(experiment)
        run_id = self._client.create_run(experiment_id, run_name=name).info.run_id
        self._client.log_batch(run_id, params=[Param(key, str(value)[:6000]) for key, value in params.items()])
        inputs = []
        for context, table in tables.items():
            table_name, _, version = table.partition("@")
            dataset = Dataset(
                name=table_name, digest=f"v{version}", source_type="delta", source=f'{{"table": "{table}"}}'
            )
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
        self._client.log_inputs(run_id, inputs)
        self.run_id = run_id

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of a step."""
        self.log_all([(step, metrics)])

    def log_all(self, steps: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Record the metrics of several steps in one request."""
        if self.run_id is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(key, value, now, step) for step, values in steps for key, value in values.items()]
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + 1000])

    def finish(self, status: str) -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        if self.run_id is not None:
            self._client.set_terminated(self.run_id, status)


class MlflowServer:
    """An MLflow server on loopback as a child of this process, with a SQLite store and a folder for artifacts.

    A thread of its own starts it and starts it again when it dies; it ends with this process, however that ends. It
    asks for no password: whoever exposes it puts a guard in front.
    """

    def __init__(self, folder: Path, *, port: int, timeout_seconds: float = 90.0) -> None:
        """Start and wait until it answers; raises Unavailable, with the log's end, if it does not in time."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "artifacts").mkdir(exist_ok=True)
        self.uri = f"http://127.0.0.1:{port}"
        self._folder = folder
        self._port = port
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
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

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
                    f"MLflow did not answer on {self.uri} within {timeout_seconds:.0f} s; its log ends: {end}"
                )
            time.sleep(0.2)

    def _keep(self) -> None:
        pause = 0.5
        while not self._stopping.is_set():
            began = time.monotonic()
            with self._log.open("ab") as log:
                self._process = self._start(log)
                while self._process.poll() is None and not self._stopping.wait(0.2):
                    pass
            _end_group(self._process)
            pause = 0.5 if time.monotonic() - began > 60 else min(pause * 2, 30)
            self._stopping.wait(pause)

    def _start(self, log: Any) -> "subprocess.Popen[bytes]":
        store = f"sqlite:///{self._folder / 'mlflow.db'}"
        command = ["env", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false", sys.executable, "-m", "mlflow", "server"]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--backend-store-uri", store, "--artifacts-destination", str(self._folder / "artifacts")]
        command += ["--workers", "1"]
        libc = ctypes.CDLL(None)

        def end_with_parent() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, preexec_fn=end_with_parent)


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
