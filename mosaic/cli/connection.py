"""`mosaic connection`: external providers with their options and secrets.

A secret is read from standard input or a file, never from an argument: `ps` shows arguments to everybody.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import click

from mosaic.catalog import Catalog
from mosaic.catalog.connections import SECRET_OPTIONS
from mosaic.cli.options import ADMIN, Pair, comment_option, json_option, owner_option, pairs, with_catalog
from mosaic.cli.verbs import Noun, add_delete, add_get, add_list, add_update, made
from mosaic.errors import BadRequest

NOUN = Noun(
    kind="connection",
    columns=("name", "spec.connection_type", "spec.options", "spec.secrets", "owner", "comment"),
    list=lambda catalog, within: catalog.connections.list(),
    get=lambda catalog, name: catalog.connections.get(name),
    within=None,
)
_LONGEST_SECRET = 65_536


@click.group()
def connection() -> None:
    """Connections: external providers, whose secrets are kept encrypted and never shown."""


@connection.command()
@with_catalog
@click.option("--type", "connection_type", required=True, help="What is connected, such as OPENAI.")
@click.option("--option", "options", type=Pair(), multiple=True, help="Such as base_url; may be given several times.")
@click.option("--secret-from-stdin", is_flag=True, help="Read the secret called --secret-name from standard input.")
@click.option(
    "--secret-name",
    metavar="NAME",
    type=click.Choice(SECRET_OPTIONS),
    default="api_key",
    show_default=True,
    help=f"Which secret that is: {', '.join(SECRET_OPTIONS)}.",
)
@click.option(
    "--secret-file", "files", type=Pair(), multiple=True, help="A secret and its file, such as token=/run/secrets/t."
)
@comment_option
@owner_option
@json_option
@click.argument("name")
def create(
    catalog: Catalog,
    name: str,
    connection_type: str,
    options: Sequence[tuple[str, str]],
    secret_from_stdin: bool,
    secret_name: str,
    files: Sequence[tuple[str, str]],
    comment: str,
    owner: str,
    as_json: bool,
) -> None:
    """Make a connection called NAME; secrets come from standard input or files, never from arguments."""
    given = pairs(options, "--option")
    for key, value in given.items():
        _check_open(key, value)
    secrets = {key: _read_file(key, path) for key, path in pairs(files, "--secret-file").items()}
    if secret_from_stdin:
        if secret_name in secrets:
            raise click.UsageError(f"{secret_name} is to come from standard input and from a file")
        secrets[secret_name] = _read_stdin(secret_name)
    record = catalog.connections.create(
        name,
        connection_type=connection_type,
        options={**given, **secrets},
        owner=owner,
        comment=comment,
        by=ADMIN,
    )
    made("connection", record, as_json)


add_list(connection, NOUN)
add_get(connection, NOUN)
add_update(
    connection, NOUN, lambda catalog, name, **given: catalog.connections.update(name, **given), has_properties=False
)
add_delete(
    connection,
    NOUN,
    lambda catalog, name, **given: catalog.connections.delete(name, **given),
    after=", but not its secrets",
)


def _check_open(key: str, value: str) -> None:
    """The message never has the value."""
    if key.lower() in SECRET_OPTIONS:
        raise click.UsageError(
            f"{key} is a secret, and arguments are shown by ps: use --secret-from-stdin --secret-name {key.lower()}, "
            f"or --secret-file {key.lower()}=FILE"
        )
    try:
        has_password = urlsplit(value).password is not None
    except ValueError:
        has_password = False
    if has_password:
        raise click.UsageError(f"--option {key} has a password in its address, and arguments are shown by ps")


def _read_file(key: str, path: str) -> str:
    if key not in SECRET_OPTIONS:
        raise click.UsageError(f"--secret-file {key}=...: there are {', '.join(SECRET_OPTIONS)}")
    try:
        with Path(path).open("rb") as file:
            return _as_secret(key, file.read(_LONGEST_SECRET + 1))
    except OSError as error:
        raise BadRequest(f"the secret {key} cannot be read from {path!r}: {error.strerror}") from None


def _read_stdin(key: str) -> str:
    if sys.stdin.isatty():
        return str(click.prompt(key, hide_input=True, err=True))
    return _as_secret(key, sys.stdin.buffer.read(_LONGEST_SECRET + 1))


def _as_secret(key: str, content: bytes) -> str:
    """Without the line end that an editor or `echo` puts after it."""
    try:
        secret = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise BadRequest(f"the secret {key} is not UTF-8 text") from None
    if not 1 <= len(secret) <= _LONGEST_SECRET:
        raise BadRequest(f"the secret {key} must have 1 to {_LONGEST_SECRET} characters, not {len(secret)}")
    return secret
