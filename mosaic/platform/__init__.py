"""Settings to a running platform: `platform.lifecycle` tells how it starts and stops, `platform.parts` knows every
part."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mosaic.platform.lifecycle import Platform, Started, down, init, up
    from mosaic.platform.settings import PlatformSettings, load_settings
    from mosaic.platform.status import Part, State

__all__ = [
    "Part",
    "Platform",
    "PlatformSettings",
    "Started",
    "State",
    "down",
    "init",
    "load_settings",
    "up",
]

_HOMES = {
    "Platform": "lifecycle",
    "Started": "lifecycle",
    "down": "lifecycle",
    "init": "lifecycle",
    "up": "lifecycle",
    "PlatformSettings": "settings",
    "load_settings": "settings",
    "Part": "status",
    "State": "status",
}


def __getattr__(name: str) -> Any:
    # Looked up when it is asked for: a command about names in the catalog does not pay for Ray.
    if name in _HOMES:
        return getattr(importlib.import_module(f"mosaic.platform.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'mosaic.platform' has no attribute {name!r}")
