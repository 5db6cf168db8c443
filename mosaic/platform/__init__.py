"""Settings to a running platform: `platform.lifecycle` tells how it starts and stops, `platform.parts` knows every
part."""

from mosaic.platform.lifecycle import Platform, Started, down, init, up
from mosaic.platform.parts import PlatformSettings, load_settings
from mosaic.platform.status import Part, State

__all__ = ["Part", "Platform", "PlatformSettings", "Started", "State", "down", "init", "load_settings", "up"]
