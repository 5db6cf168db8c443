"""Requests that begin alike go to the same replica of an engine, whose KV cache has that beginning already.

Ray's `PrefixCacheAffinityRouter` for our engine protocol. It runs in whoever asks, such as a gateway, so that it is
imported from where it is written: its public address brings vLLM along, which takes 25 s.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.llm._internal.serve.routing_policies.prefix_aware.prefix_aware_router import PrefixCacheAffinityRouter
from ray.llm._internal.serve.routing_policies.prefix_aware.prefix_tree import PrefixTreeActor
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter

from mosaic.protocol import EngineRequest

logger = logging.getLogger(__name__)

_IMBALANCED = 10
"""With this many more requests on one replica than on another, the less busy of two is asked instead."""


class PrefixRouter(PrefixCacheAffinityRouter):
    """The replica that has seen the longest part of the prompt, as long as none is much busier than the others.

    While the actor that remembers is away, the less busy of two; it is started again, and begins with nothing.
    """

    def initialize_state(self, **_: Any) -> None:
        # Made here: Ray's way of making it waits for a whole free logical CPU, which a small cluster never has.
        tree = PrefixTreeActor.options(
            name=tree_of(self._deployment_id.app_name),
            namespace=SERVE_NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
        ).remote()
        controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
        ray.get(controller._register_shutdown_cleanup_actor.remote(tree))
        super().initialize_state(imbalanced_threshold=_IMBALANCED, do_eviction=True, tree_actor=tree)

    def _extract_text_from_request(self, pending_request: Any) -> str | None:
        return next((text_of(one) for one in pending_request.args if isinstance(one, EngineRequest)), None)

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> Any:
        try:
            return await super().choose_replicas(candidate_replicas, pending_request)
        except KeyError:  # another gateway has told the tree of a replica that this one has yet to hear of
            pass
        except RayError as error:
            logger.warning("%s is away: %s", tree_of(self._deployment_id.app_name), error)
        return await PowerOfTwoChoicesRequestRouter.choose_replicas(self, candidate_replicas, pending_request)

    def on_request_routed(self, pending_request: Any, replica_id: Any, result: Any) -> None:
        with self._without_the_tree():
            if replica_id in self._replicas:
                # One that was started again knows no replica and forgets nothing; for another both do nothing.
                self._tree_actor.add_tenants.remote([replica_id.to_full_id_str()], time.time())
                self._tree_actor.start_eviction_loop.remote(
                    self._eviction_threshold_chars, self._eviction_target_chars, self._eviction_interval_secs
                )
            super().on_request_routed(pending_request, replica_id, result)

    def on_replica_actor_died(self, replica_id: Any) -> None:
        with self._without_the_tree():
            super().on_replica_actor_died(replica_id)

    def update_replicas(self, replicas: list[Any]) -> None:
        with self._without_the_tree():
            super().update_replicas(replicas)

    @contextmanager
    def _without_the_tree(self) -> Iterator[None]:
        """What is told to the tree is only for speed: nobody's request fails for it."""
        try:
            yield
        except RayError as error:
            logger.warning("%s is away: %s", tree_of(self._deployment_id.app_name), error)


def tree_of(app_name: str) -> str:
    """The actor that remembers what an application's replicas have seen, in Serve's namespace."""
    return f"prefixes-{app_name}"


def forget(app_name: str) -> None:
    """End the actor of an application that has ended; one without it has none."""
    with suppress(ValueError):
        ray.kill(ray.get_actor(tree_of(app_name), namespace=SERVE_NAMESPACE))


def text_of(request: EngineRequest) -> str | None:
    """What a request's place in the cache depends on; None for one that has no prompt.

    The adapter is part of it: the same words are other keys and values under another adapter.
    """
    body = request.body
    messages = body.get("messages")
    said = "\n".join(_content(one) for one in messages) if isinstance(messages, list) else body.get("prompt")
    if not isinstance(said, str) or not said:
        return None
    return f"{request.adapter.name if request.adapter else ''}\n{said}"


def _content(message: Any) -> str:
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, list):  # OpenAI's parts
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return str(content or "")
