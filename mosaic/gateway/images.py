"""Images in what is asked: passed on to providers that read them, within bounds, and kept in rows as references alone.

An image comes with the message (a data: URL) or is named by an https:// address. We never fetch such an address: it is
the provider that does, from outside.
"""

import binascii
import hashlib
import re
from base64 import b64decode
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from mosaic.errors import BadRequest, Unprocessable
from mosaic.gateway.endpoints import Endpoint
from mosaic.monitoring.record import compact_json
from mosaic.protocol import ImagePart, Message
from mosaic.serving.images import MEDIA_TYPES, ImageRules

_DATA_URL = re.compile(r"data:([a-z0-9.+/-]{1,100});base64,", re.IGNORECASE)
_LONGEST_ADDRESS = 8192


def check_images(messages: Sequence[Message], endpoint: Endpoint) -> None:
    """Raises Unprocessable for an endpoint that does not read images, and BadRequest for one that is none, is too large
    or is one too many; each names the part."""
    found = [
        (f"messages.{number}.content.{place}", part)
        for number, message in enumerate(messages)
        if isinstance(message.content, list)
        for place, part in enumerate(message.content)
        if isinstance(part, ImagePart)
    ]
    if not found:
        return
    _check_reader(endpoint, found[0][0])
    rules = endpoint.images
    if len(found) > rules.max_images:
        told = f"the request has {len(found)} images, and {endpoint.served_name!r} takes {rules.max_images}"
        raise BadRequest(told, param=found[rules.max_images][0])
    for at, part in found:
        _check(part.image_url.url, rules, f"{at}.image_url.url")


def _check_reader(endpoint: Endpoint, at: str) -> None:
    if endpoint.retrieval is not None:
        told = f"{endpoint.served_name!r} looks up what a chat says in text, and {at} is an image"
        raise Unprocessable(told, param=at)
    asked = [one for one in endpoint.entities if one.traffic_percentage or endpoint.falls_back]
    for entity in asked:
        if entity.external is None:
            told = f"served entity {entity.name!r} of {endpoint.served_name!r} reads text alone, and {at} is an image"
            raise Unprocessable(told, param=at)


def _check(url: str, rules: ImageRules, param: str) -> None:
    if url[:5].lower() != "data:":
        if not _is_address(url):
            told = f"{param} = {url!r:.80} must be a data: URL, or https:// with a host and no user"
            raise BadRequest(told, param=param)
        return
    media_type, data = _split(url)
    if media_type not in MEDIA_TYPES:
        told = f"{param} = {url!r:.40} must begin with data:TYPE;base64, where TYPE is one of {list(MEDIA_TYPES)}"
        raise BadRequest(told, param=param)
    try:
        size_bytes = len(b64decode(data, validate=True))
    except (binascii.Error, ValueError):
        raise BadRequest(f"{param} is not base64", param=param) from None
    if not 0 < size_bytes <= rules.max_image_bytes:
        told = f"{param} has {size_bytes:,} bytes, and an image has 1 to {rules.max_image_bytes:,}"
        raise BadRequest(told, param=param)


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    is_plain = url.isascii() and not any(sign <= " " or sign == "\\" for sign in url)
    return is_plain and parts.scheme == "https" and bool(parts.hostname) and "@" not in parts.netloc


def _split(url: str) -> tuple[str, str]:
    """A data: URL's media type and data; no type for what is not in base64."""
    found = _DATA_URL.match(url)
    return ("", url) if found is None else (found[1].lower(), url[found.end() :])


def as_logged(body: Any) -> str:
    """What was asked as rows have it: JSON in which images are references."""
    told = compact_json(body)
    return compact_json(_referenced(body)) if '"image_url":' in told or '"base64"' in told else told


def _referenced(value: Any) -> Any:
    if isinstance(value, list):
        return [_referenced(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.get("type") == "base64" and isinstance(value.get("data"), str):  # Anthropic's word for it
        return {"type": "base64", **_reference_of(f"data:{value.get('media_type')};base64,{value['data']}")}
    return {name: _reference(one) if name == "image_url" else _referenced(one) for name, one in value.items()}


def _reference(image: Any) -> Any:
    """Also of what is no image: it may be one that somebody said wrongly."""
    if isinstance(image, str):
        return _reference_of(image)
    if isinstance(image, dict) and isinstance(image.get("url"), str):
        return {
            **{name: _referenced(one) for name, one in image.items() if name != "url"},
            **_reference_of(image["url"]),
        }
    return _referenced(image)


def _reference_of(url: str) -> dict[str, Any]:
    """An address without its query, in which a signature may stand that opens it."""
    if url[:5].lower() != "data:":
        return {"url": url.partition("?")[0][:_LONGEST_ADDRESS], "url_sha256": hashlib.sha256(url.encode()).hexdigest()}
    media_type, data = _split(url)
    try:
        content = b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        content = data.encode()
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "media_type": media_type or None}
