"""The catalog spoken in Unity Catalog's REST protocol 2.1, for clients that nobody here wrote."""

from mosaic.catalog.unity.authorize import Authorize, by_grants
from mosaic.catalog.unity.credentials import Credentials, Vend
from mosaic.catalog.unity.routes import unity_routes

__all__ = ["Authorize", "Credentials", "Vend", "by_grants", "unity_routes"]
