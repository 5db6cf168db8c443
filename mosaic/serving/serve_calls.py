"""Serve's calls: cheap ones, and those that build deployments' configurations, which go one at a time in a process.

To build one, Serve (2.60) registers its router's module with cloudpickle and takes it away again: of two threads that
do so at once, one finds it gone ("is not registered for pickle by value"). `serve.status` builds those of all
deployments.
"""

import threading
from collections.abc import Mapping, Sequence

from ray import serve
from ray.serve._private.application_state import StatusOverview
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatusOverview

BUILDING = threading.Lock()


def applications() -> Mapping[str, ApplicationStatusOverview]:
    """Serve's applications by name."""
    with BUILDING:
        found: Mapping[str, ApplicationStatusOverview] = serve.status().applications
        return found


def statuses() -> Sequence[StatusOverview]:
    """The same without how many replicas there are: for who asks again and again, since `applications` takes a tenth
    of a second of CPU time for a dozen applications."""
    client = _get_global_client(raise_if_no_controller_running=False)
    found: Sequence[StatusOverview] = [] if client is None else client.list_serve_statuses()
    return found


def hand_in(application: serve.Application, app_name: str) -> None:
    """Start (or update) an application without a route; returns at once."""
    target = serve.RunTarget(target=application, name=app_name, route_prefix=None)
    with BUILDING:
        serve.run_many([target], wait_for_applications_running=False)
