"""Control's catalog routes as a server of their own: `serve.py CATALOG_URL STORAGE PORT`, for tests and benchmarks that
load and kill it."""

import sys

import uvicorn
from starlette.routing import Mount, Router

from mosaic.catalog import Catalog
from mosaic.catalog.unity import unity_routes
from mosaic.runtime import Authenticate, ShapeErrors
from mosaic.runtime.asgi import RequestId
from mosaic.storage import Storage


def main(url: str, root: str, port: str) -> None:
    catalog = Catalog.open(url)
    routes = Router(routes=unity_routes(catalog, Storage(root)), redirect_slashes=False)
    under_api = Router(routes=[Mount("/api", app=ShapeErrors(Authenticate(routes, catalog.check_token)))])
    uvicorn.run(RequestId(under_api), host="127.0.0.1", port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
