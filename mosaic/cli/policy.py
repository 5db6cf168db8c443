"""`mosaic policy`: sets of guardrail rules with versions and aliases, and the endpoints that attach them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from mosaic.catalog import Catalog
from mosaic.cli.aliases import add_aliases
from mosaic.cli.endpoint import finished, with_serving
from mosaic.cli.options import (
    ADMIN,
    as_option,
    comment_option,
    json_option,
    listed,
    with_catalog,
)
from mosaic.cli.show import show, show_one, tell
from mosaic.cli.verbs import Noun, add_delete, add_list, add_update, check_seen_by
from mosaic.errors import BadRequest
from mosaic.protocol import Principal

if TYPE_CHECKING:
    from mosaic.serving.service import Serving

NOUN = Noun(
    kind="policy",
    columns=("name", "owner", "comment", "updated_at"),
    list=lambda catalog, within: catalog.policies.list(within),
    get=lambda catalog, name: catalog.policies.whole(name),
    plural="policies",
)


@click.group()
def policy() -> None:
    """Policies: sets of guardrail rules with versions, attached to endpoints."""


add_list(policy, NOUN)


@policy.command()
@with_catalog
@json_option
@as_option
@click.argument("name")
def get(catalog: Catalog, name: str, as_json: bool, principal: Principal) -> None:
    """Show a version of a policy: NAME is `main.default.pii/3`, `main.default.pii@prod`, or a name for the newest."""
    whole = name.replace("@", "/").partition("/")[0]
    check_seen_by(catalog, principal, "policy", whole)
    show_one(catalog.policies.get(name), as_json, attached_to=catalog.policies.attached_to(whole))


@policy.command()
@with_catalog
@listed
@as_option
@click.argument("name")
def versions(catalog: Catalog, name: str, as_json: bool, limit: int | None, principal: Principal) -> None:
    """Show the versions of the policy called NAME, oldest first."""
    check_seen_by(catalog, principal, "policy", name)
    columns = ("version", "comment", "created_by", "created_at")
    show(catalog.policies.versions(name), columns, as_json, what="versions", limit=limit)


@policy.command()
@with_catalog
@click.option(
    "-r",
    "--rules",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="What it looks for on input and output: policy.yaml (docs/gateway.md).",
)
@comment_option
@json_option
@click.argument("name")
def create(catalog: Catalog, rules: Path, comment: str, as_json: bool, name: str) -> None:
    """Make the next version of the policy called NAME, which is made if it is not there."""
    from mosaic.serving.ai_gateway import Guardrails
    from mosaic.serving.policies import Policies

    wanted = Guardrails.parse(_read(rules), source=str(rules))
    version = Policies(catalog, ADMIN).create(name, wanted, comment=comment)
    tell(f"policy {version.full_name} is made", version, as_json)


@policy.command()
@with_serving
@click.option("--wait/--no-wait", default=True, help="Return when it is live, or at once.  [default: --wait]")
@json_option
@click.argument("name")
@click.argument("endpoint")
def attach(serving: "Serving", name: str, endpoint: str, wait: bool, as_json: bool) -> None:
    """Hold ENDPOINT to the policy called NAME: `main.default.pii/3`, `main.default.pii@prod`, or always the newest."""
    finished(serving, serving.attach_policy(endpoint, name), wait, as_json)


@policy.command()
@with_serving
@click.option("--wait/--no-wait", default=True, help="Return when it is live, or at once.  [default: --wait]")
@json_option
@click.argument("name")
@click.argument("endpoint")
def detach(serving: "Serving", name: str, endpoint: str, wait: bool, as_json: bool) -> None:
    """Hold ENDPOINT to the policy called NAME no more, in whichever version it does now."""
    finished(serving, serving.detach_policy(endpoint, name), wait, as_json)


add_aliases(
    policy,
    "policy",
    lambda catalog, name, alias, version, by: catalog.policies.set_alias(name, alias, version, by=by),
    lambda catalog, name, alias: catalog.policies.alias_history(name, alias),
)
add_update(policy, NOUN, lambda catalog, name, **given: catalog.policies.update(name, **given), has_properties=False)
add_delete(policy, NOUN, lambda catalog, name, **given: catalog.policies.delete(name, **given))


def _read(rules: Path) -> dict[str, Any]:
    try:
        given = yaml.safe_load(rules.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadRequest(f"{rules} is not YAML: {error}") from None
    if not isinstance(given, dict):
        raise BadRequest(f"{rules} must hold input, output or both, not {type(given).__name__}")
    return given
