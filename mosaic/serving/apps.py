"""Engines as Ray Serve applications: starting, watching, probing and ending them."""

import asyncio
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import ray
from ray import serve
from ray.serve.schema import ApplicationStatusOverview

from mosaic.catalog import Catalog
from mosaic.errors import BadRequest, EngineFailed, MosaicError, NotFound, Unavailable
from mosaic.ids import new_id
from mosaic.protocol import EngineRequest
from mosaic.serving.deploy import start_engine
from mosaic.serving.endpoint import EndpointSettings, Unit, adapter_of
from mosaic.serving.engine import ServeEngine
from mosaic.serving.nodes import cluster_nodes
from mosaic.serving.plan import gpus_of, plan_engine, require_memory, reserved
from mosaic.serving.replicas import Replica, log_lines, metrics_text, replicas_by_app
from mosaic.serving.rollout import SCALED_TO_ZERO, AppState
from mosaic.serving.runners import Kind, kind_of
from mosaic.serving.serve_calls import applications, statuses
from mosaic.serving.settings import EngineSettings

_PROBE_SECONDS = 300


class ServeApps:
    """`rollout.Apps` on the Ray cluster that this process has joined.

    `engines` are the platform's settings by model; `resolve` turns a model's name into a local folder and must pickle;
    `check` raises for a name that is none; `local` gives the folder of a model that is here already.
    """

    def __init__(
        self,
        catalog: Catalog,
        engines: Mapping[str, EngineSettings],
        resolve: Callable[[str], Path],
        check: Callable[[str], None],
        local: Callable[[str], Path | None],
    ) -> None:
        self._catalog, self._engines, self._resolve = catalog, engines, resolve
        self._check, self._local = check, local
        self._ended: set[str] = set()

    def states(self, *, replicas: bool = False) -> dict[str, AppState]:
        """`replicas`: also, as the reason of what runs, which have none at the moment; that takes Serve longer."""
        found = {}
        asleep = {name for name, one in applications().items() if not _has_replicas(one)} if replicas else set[str]()
        for one in statuses():
            told = [deployment.message for deployment in one.deployment_statuses if deployment.message]
            reason = "\n".join([one.app_status.message, *told])
            match one.app_status.status:
                case "RUNNING":
                    found[one.name] = AppState("running", SCALED_TO_ZERO if one.name in asleep else "")
                case "DEPLOY_FAILED":
                    found[one.name] = AppState("failed", reason)
                case "DELETING":
                    found[one.name] = AppState("ending")
                case _:  # also UNHEALTHY: Serve starts replicas that died by itself
                    found[one.name] = AppState("starting", reason)
        for name in self._ended - found.keys():
            from mosaic.serving import prefix_router  # brings parts of Ray that nothing else here needs

            self._ended.discard(name)
            prefix_router.forget(name)
        return found

    def start(self, unit: Unit) -> None:
        start_engine(unit, self.settings_of(unit), self._resolve)

    def end(self, app_name: str) -> None:
        serve.delete(app_name, _blocking=False)
        self._ended.add(app_name)

    def probe(self, app_name: str, settings: EndpointSettings, model: str, start_seconds: float) -> None:
        if settings.task == "chat":
            body: dict[str, object] = {"messages": [{"role": "user", "content": "ping"}], "max_tokens": 1}
        elif settings.task == "complete":
            body = {"prompt": "ping", "max_tokens": 1}
        elif settings.task == "embed":
            body = {"input": ["ping"]}
        elif settings.task == "score":
            body = {"pairs": [["ping", "pong"]]}
        else:
            body = {}
        request = EngineRequest(
            request_id=new_id("req"), task=settings.task, body=body, adapter=adapter_of(self._catalog, model)
        )
        seconds = probe_seconds(applications().get(app_name), start_seconds)
        answer = asyncio.run_coroutine_threadsafe(_first(ServeEngine(app_name), request), self._loop)
        try:
            answer.result(seconds)
        except TimeoutError:
            answer.cancel()
            raise EngineFailed(f"no answer within {seconds:g} s") from None

    @functools.cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """One loop for all probes: Serve's handles hold on to the first that they see."""
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, name="probes", daemon=True).start()
        return loop

    def replicas(self, app_names: Sequence[str]) -> dict[str, list[Replica]]:
        return replicas_by_app(app_names)

    def log_lines(self, replica: Replica, lines: int) -> list[str]:
        return log_lines(replica, lines)

    def metrics_text(self) -> str:
        return metrics_text()

    def settings_of(self, unit: Unit) -> EngineSettings:
        return unit.settings or self._engines.get(unit.model, EngineSettings())

    def cpus_of(self, unit: Unit) -> float:
        """Logical CPUs that its replicas reserve, those that there are at first."""
        settings = self.settings_of(unit)
        try:
            return reserved(self._kind(unit), settings)[0] * settings.first_replicas
        except (BadRequest, NotFound):  # it does not start, and its endpoint says why
            return 0.0

    def gpus_of(self, unit: Unit) -> float | None:
        """GPUs that one replica of it has, as far as its settings and the cluster say; None for a model that is not on
        this machine yet."""
        if not ray.cluster_resources().get("GPU", 0.0):
            return 0.0
        try:
            kind = self._kind(unit)
            return None if kind is None else gpus_of(kind, self.settings_of(unit))
        except MosaicError:  # it does not start, and its endpoint says why
            return None

    def require_model(self, unit: Unit) -> None:
        """Raises NotFound with the models that there are."""
        if unit.model != "echo":
            self._check(unit.model)

    def require_room(self, units: set[Unit]) -> None:
        """Raises with the sum (`does_not_fit`) if those that do not run yet find no free logical CPUs, GPUs or memory.

        Also what `plan_engine` raises. A model that has yet to be fetched is looked at when its engine starts.
        """
        states = self.states()
        gone = ("ending", "failed")
        missing = [unit for unit in sorted(units) if states.get(unit.app_name, AppState("ending")).state in gone]
        kinds = {unit: self._kind(unit) for unit in missing}
        on_vllm = [unit for unit, kind in kinds.items() if kind in ("generate", "pooling")]
        folders = {unit: folder for unit in on_vllm if (folder := self._local(unit.model)) is not None}
        nodes = cluster_nodes() if folders else ()
        plans = {
            unit.app_name: (plan_engine(self.settings_of(unit), folder, nodes), self.settings_of(unit).first_replicas)
            for unit, folder in folders.items()
        }
        cpus, gpus = dict[str, float](), dict[str, float]()
        for unit, kind in kinds.items():
            name, settings = unit.app_name, self.settings_of(unit)
            each = reserved(kind, settings, plans[name][0] if name in plans else None)
            cpus[name], gpus[name] = (one * settings.first_replicas for one in each)
        free = ray.available_resources()
        require_fit(cpus, free.get("CPU", 0.0), "free")
        require_fit(gpus, free.get("GPU", 0.0), "free", "GPUs")
        require_memory(plans, nodes)

    def _kind(self, unit: Unit) -> Kind | None:
        """What it runs as, as far as it is on this machine already. Raises BadRequest for a config.json that is
        none."""
        folder = None if unit.model == "echo" else self._local(unit.model)
        if folder is None and unit.model != "echo":
            return None
        return kind_of(folder, self.settings_of(unit))


def _has_replicas(application: ApplicationStatusOverview) -> bool:
    return all(
        any(count for state, count in one.replica_states.items() if state != "STOPPING")
        for one in application.deployments.values()
    )


def probe_seconds(application: ApplicationStatusOverview | None, start_seconds: float) -> float:
    """How long a probe may take: of an engine that sleeps (or is being woken) as long as one may take to start."""
    deployments = () if application is None else application.deployments.values()
    are_awake = all("RUNNING" in [state for state, count in one.replica_states.items() if count] for one in deployments)
    return _PROBE_SECONDS if are_awake else start_seconds


async def _first(engine: ServeEngine, request: EngineRequest) -> None:
    answers = engine.answer(request)
    async for _ in answers:
        break
    await answers.aclose()  # type: ignore[attr-defined]  # a generator, whose end tells the engine


def require_fit(wanted: Mapping[str, float], available: float, where: str, what: str = "logical CPUs") -> None:
    """Raise Unavailable with the sum when the logical CPUs (or `what` else) do not suffice."""
    total = sum(wanted.values())
    if total > available + 1e-6:
        listed = " + ".join(f"{cpus:g} ({name})" for name, cpus in wanted.items() if cpus)
        raise Unavailable(f"{listed} = {total:g} {what} are wanted, {available:g} are {where}", code="does_not_fit")
