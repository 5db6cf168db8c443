"""Unity Catalog's REST protocol 2.1 over the catalog: start reading here. The routes in order, one file for each noun.

A route reads its call (`call.py`), asks `authorize` before everything it does, calls the catalog, and answers in the
protocol's shapes (`shapes.py`). The rules of the answers, each of which some client needs: every field is always there,
null where there is nothing; without max_results a list is whole; times are milliseconds; unknown query parameters are
fine, unknown fields of a body are a 400 that names them. Errors get their shape in `mosaic.runtime.asgi`. Each route
states what it takes, of which `openapi.py` makes the document at /api/2.1/unity-catalog/openapi.json.
"""

from starlette.routing import Route

from mosaic.catalog.catalog import Catalog
from mosaic.catalog.unity.authorize import Authorize, by_grants
from mosaic.catalog.unity.call import Call, route
from mosaic.catalog.unity.connections import ConnectionRoutes
from mosaic.catalog.unity.credentials import CredentialRoutes, Vend
from mosaic.catalog.unity.functions import FunctionRoutes
from mosaic.catalog.unity.models import ModelRoutes
from mosaic.catalog.unity.namespaces import NamespaceRoutes
from mosaic.catalog.unity.openapi import document_route
from mosaic.catalog.unity.permissions import PermissionRoutes
from mosaic.catalog.unity.shapes import Nothing
from mosaic.catalog.unity.surface import Surface
from mosaic.catalog.unity.tables import TableRoutes
from mosaic.catalog.unity.tags import TagRoutes
from mosaic.catalog.unity.volumes import VolumeRoutes
from mosaic.errors import Unimplemented
from mosaic.storage import Storage

BASE = "/2.1/unity-catalog"
BASE_20 = "/2.0/unity-catalog"

NOT_SPOKEN = (
    "staging-tables",
    "credentials",
    "storage-credentials",
    "external-locations",
    "delta",
    "iceberg-rest",
)
"""Nouns of the protocol that are a 501, so that a client can tell them from a wrong path."""


def unity_routes(
    catalog: Catalog, storage: Storage, *, authorize: Authorize | None = None, vend: Vend | None = None
) -> list[Route]:
    """The routes, for an application with the prefix /api that has put a Principal into `request.state.principal`.

    `storage` is where managed tables and models live; `vend` makes temporary credentials for object stores; `authorize`
    is the rule of the catalog's grants, unless another one is given.
    """
    surface = Surface(catalog, storage, authorize or by_grants(catalog))
    spoken = [
        *NamespaceRoutes(surface).routes(BASE),
        *TableRoutes(surface).routes(BASE),
        *VolumeRoutes(surface).routes(BASE),
        *FunctionRoutes(surface).routes(BASE),
        *ConnectionRoutes(surface).routes(BASE),
        *ModelRoutes(surface).routes(BASE),
        *TagRoutes(surface).routes(BASE),
        *PermissionRoutes(surface).routes(BASE),
        *CredentialRoutes(surface, vend).routes(BASE, BASE_20),
    ]
    return [
        *spoken,
        document_route(f"{BASE}/openapi.json", spoken, surface.authorize),
        *(one for noun in NOT_SPOKEN for one in _not_spoken(noun)),
    ]


def _not_spoken(noun: str) -> list[Route]:
    def refuse(call: Call) -> Nothing:
        raise Unimplemented(f"{noun!r} of the Unity Catalog protocol is not spoken by this version")

    paths = (f"{BASE}/{noun}", f"{BASE}/{noun}/{{rest:path}}")
    return [route(method, path, refuse) for path in paths for method in ("GET", "POST", "PATCH", "PUT", "DELETE")]
