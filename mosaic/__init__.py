"""mosaic: a self-hosted platform for compound AI systems, built on Ray.

Importing this package does nothing else. `mosaic.init()` gives a driver script the running platform:

    import mosaic

    platform = mosaic.init()
    print(platform.status())
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mosaic.platform import Platform, PlatformSettings, init

__version__ = "0.1.0"
__all__ = ["Platform", "PlatformSettings", "__version__", "init"]


def __getattr__(name: str) -> Any:
    # The platform knows every part and so imports Ray; whoever only wants `mosaic.errors` must not pay for that.
    if name in ("Platform", "PlatformSettings", "init"):
        from mosaic import platform

        return getattr(platform, name)
    raise AttributeError(f"module 'mosaic' has no attribute {name!r}")
