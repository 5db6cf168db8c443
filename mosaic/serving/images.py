"""What images an endpoint takes beside text; only external models read them."""

from pydantic import Field

from mosaic.settings import Settings

MEDIA_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")


class ImageRules(Settings):
    """The images of one request. The gateway's own `max_body_bytes` holds for all of it, where an image that comes with
    the message takes a third more."""

    max_images: int = Field(default=8, ge=0, le=100)
    """How many there may be; 0 takes none."""
    max_image_bytes: int = Field(default=2 * 2**20, ge=1)
    """The size of each that comes with the message; one that is named by its address is the provider's to limit."""


DEFAULT_RULES = ImageRules()
