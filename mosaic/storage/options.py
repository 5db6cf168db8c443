"""Options of object stores: one mapping in deltalake's spelling, translated to pyarrow's filesystems.

deltalake (through the object_store crate) and pyarrow name the same things differently. Storage keeps deltalake's
names, as they are also the environment variables people know, and translates them here.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from pyarrow import fs

from mosaic.errors import BadRequest

SCHEMES = ("s3", "gs", "abfss")
"""Schemes of object stores; anything without a scheme is a local path."""

_S3 = {
    "AWS_ACCESS_KEY_ID": "access_key",
    "AWS_SECRET_ACCESS_KEY": "secret_key",
    "AWS_SESSION_TOKEN": "session_token",
    "AWS_REGION": "region",
    "AWS_ENDPOINT_URL": "endpoint_override",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "force_virtual_addressing",
    "AWS_SKIP_SIGNATURE": "anonymous",
}
_GS = {
    "GOOGLE_SKIP_SIGNATURE": "anonymous",
    "GOOGLE_BASE_URL": "endpoint_override",
}
_ABFSS = {
    "AZURE_STORAGE_ACCOUNT_NAME": "account_name",
    "AZURE_STORAGE_ACCOUNT_KEY": "account_key",
    "AZURE_STORAGE_CLIENT_ID": "client_id",
    "AZURE_STORAGE_CLIENT_SECRET": "client_secret",
    "AZURE_STORAGE_TENANT_ID": "tenant_id",
    "AZURE_STORAGE_SAS_TOKEN": "sas_token",
}
_FLAGS = {"AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "AWS_SKIP_SIGNATURE", "AWS_ALLOW_HTTP", "GOOGLE_SKIP_SIGNATURE"}

_FOR_DELTA_ONLY = {"s3": {"AWS_ALLOW_HTTP", "AWS_CONDITIONAL_PUT"}, "gs": set[str](), "abfss": set[str]()}
_TRANSLATED = {"s3": _S3, "gs": _GS, "abfss": _ABFSS}


def known_options(scheme: str) -> list[str]:
    """The option names that mean something for a scheme."""
    return sorted({*_TRANSLATED[scheme], *_FOR_DELTA_ONLY[scheme]})


def checked_options(options: Mapping[str, str]) -> dict[str, str]:
    """The options with names in upper case; raises BadRequest for unknown names, wrong flags and contradictions."""
    known = {name for scheme in SCHEMES for name in known_options(scheme)}
    checked: dict[str, str] = {}
    for name, value in options.items():
        upper = name.upper()
        if upper not in known:
            raise BadRequest(f"unknown storage option {name!r}; there are {sorted(known)}", param=name)
        if upper in checked:
            raise BadRequest(f"storage option {name!r} is given twice, in different case", param=name)
        if not isinstance(value, str):
            raise BadRequest(f"storage option {name!r} must be text, not {type(value).__name__}", param=name)
        if upper in _FLAGS and value.lower() not in ("true", "false"):
            raise BadRequest(f"storage option {name!r} = {value!r}: it must be 'true' or 'false'", param=name)
        checked[upper] = value
    endpoint = checked.get("AWS_ENDPOINT_URL")
    if endpoint is not None:
        if urlsplit(endpoint).scheme not in ("http", "https"):
            raise BadRequest(
                f"AWS_ENDPOINT_URL = {endpoint!r}: it must start with http:// or https://", param="options"
            )
        if endpoint.startswith("http://") and checked.get("AWS_ALLOW_HTTP", "false").lower() != "true":
            raise BadRequest(
                f"AWS_ENDPOINT_URL = {endpoint!r} is not encrypted; set AWS_ALLOW_HTTP to 'true' if that is meant",
                param="options",
            )
    return checked


def delta_options(scheme: str, options: Mapping[str, str]) -> dict[str, str]:
    """What deltalake takes as `storage_options` for addresses of that scheme.

    On S3 a commit is a conditional put (If-None-Match), so that two writers never overwrite each other's commit.
    """
    chosen = {name: value for name, value in options.items() if name in known_options(scheme)}
    if scheme == "s3":
        chosen.setdefault("AWS_CONDITIONAL_PUT", "etag")
    return chosen


def remote_filesystem(scheme: str, authority: str, options: Mapping[str, str]) -> fs.FileSystem:
    """pyarrow's filesystem for a scheme; `authority` is the address's part between `://` and the first slash."""
    arguments: dict[str, Any] = {}
    for name, argument in _TRANSLATED[scheme].items():
        if name in options:
            value = options[name]
            arguments[argument] = value.lower() == "true" if name in _FLAGS else value
    if scheme == "abfss":
        return _azure(authority, arguments)
    if "endpoint_override" in arguments:
        url = urlsplit(arguments["endpoint_override"])
        arguments["scheme"] = url.scheme
        arguments["endpoint_override"] = url.netloc + url.path.rstrip("/")
    if scheme == "gs":
        return fs.GcsFileSystem(**arguments)
    # Short limits: an unreachable store is an answer within seconds, not minutes. Uploads of large objects are parts.
    return fs.S3FileSystem(connect_timeout=5, request_timeout=60, **arguments)


def _azure(authority: str, arguments: dict[str, Any]) -> fs.FileSystem:
    account = authority.partition("@")[2].partition(".")[0]
    if not account:
        raise BadRequest(f"an Azure address is abfss://container@account.dfs.core.windows.net/path, not {authority!r}")
    if arguments.setdefault("account_name", account) != account:
        raise BadRequest(
            f"AZURE_STORAGE_ACCOUNT_NAME = {arguments['account_name']!r}, but the address names account {account!r}"
        )
    return fs.AzureFileSystem(**arguments)
