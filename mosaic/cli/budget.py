"""`mosaic budget`: so much money a day or month, for whom and what."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mosaic.catalog import Catalog
from mosaic.catalog.budgets import Scope
from mosaic.catalog.money import dollars, parse_dollars
from mosaic.cli.options import ADMIN, Pair, chosen, json_option, listed, pairs, with_catalog, with_settings
from mosaic.cli.show import show, show_one, tell

if TYPE_CHECKING:
    from mosaic.gateway.money import BudgetState


@click.group()
def budget() -> None:
    """Budgets: so much money a calendar day or month (UTC), for whom and what; what is spent waits for the next."""


@budget.command()
@with_catalog
@click.option("--amount", metavar="DOLLARS", required=True, help="Such as 25 or 0.5.")
@click.option("--per", "period", type=click.Choice(["day", "month"]), required=True, help="In UTC.")
@click.option("--user", help="Only what this user spends.")
@click.option("--group", help="Only what the members of this group spend, together.")
@click.option("--service-principal", help="Only what this service spends.")
@click.option("--endpoint", help="Only what is asked of this endpoint.")
@click.option(
    "--tag", "tags", type=Pair(), multiple=True, help="Only requests whose usage_context says this; several: all."
)
@click.option("--each-user", is_flag=True, help="Every user and service has the whole amount for itself.")
@json_option
@click.argument("name")
def create(
    catalog: Catalog,
    name: str,
    amount: str,
    period: Literal["day", "month"],
    tags: Sequence[tuple[str, str]],
    as_json: bool,
    **scope: Any,
) -> None:
    """Make a budget called NAME; it holds requests for which all that is said is so, from now on."""
    made = catalog.budgets.create(
        name,
        amount_nano_dollars=parse_dollars(amount, param="--amount"),
        period=period,
        scope=Scope.parse({**scope, "tags": pairs(tags, "--tag")}, source="the budget"),
        by=ADMIN,
    )
    tell(f"budget {made.name} of {dollars(made.amount_nano_dollars)} a {made.period} is made", made, as_json)


@budget.command("list")
@with_catalog
@listed
def list_(catalog: Catalog, as_json: bool, limit: int | None) -> None:
    """Show the budgets, by name; `mosaic budget show` says what is spent of one."""
    found = catalog.budgets.list()
    rows: list[Any] = [
        {**one.model_dump(), "amount": dollars(one.amount_nano_dollars), "scope": _said(one.scope)} for one in found
    ]
    columns = ("name", "amount", "period", "scope", "created_by", "created_at")
    show(
        [one.model_dump(mode="json") for one in found] if as_json else rows,
        columns,
        as_json,
        what="budgets",
        limit=limit,
    )


@budget.command("show")
@with_settings
@json_option
@click.option("--whom", metavar="PRINCIPAL", help="Of one that every user has for itself: whose.")
@click.argument("name")
def show_(file: Path | None, storage: str | None, home: str | None, name: str, whom: str | None, as_json: bool) -> None:
    """Show what is spent of the budget called NAME, what is left, and when it renews; the platform must run."""
    from mosaic.platform.lifecycle import join

    state = join(chosen(file, storage, home).home_folder).acting(ADMIN).money.show_budget(name, whom)
    show_one(state if as_json else _in_dollars(state), as_json)


@budget.command()
@with_catalog
@click.option("--amount", metavar="DOLLARS", required=True, help="Such as 25 or 0.5.")
@json_option
@click.argument("name")
def update(catalog: Catalog, name: str, amount: str, as_json: bool) -> None:
    """Give the budget called NAME another amount; what is spent of it stays so."""
    made = catalog.budgets.set_amount(name, parse_dollars(amount, param="--amount"), by=ADMIN)
    tell(f"budget {made.name} is {dollars(made.amount_nano_dollars)} a {made.period}", made, as_json)


@budget.command()
@with_catalog
@click.argument("name")
def delete(catalog: Catalog, name: str) -> None:
    """Delete the budget called NAME; it holds nobody any more."""
    catalog.budgets.delete(name, by=ADMIN)
    click.echo(f"budget {name} is deleted")


def _said(scope: Scope) -> str:
    said = [f"{field}={value}" for field, value in scope if isinstance(value, str)]
    said += [f"tag:{key}={value}" for key, value in scope.tags.items()]
    return ", ".join([*said, *(["each user"] if scope.each_user else [])]) or "everything"


def _in_dollars(state: "BudgetState") -> dict[str, Any]:
    return {
        "name": state.name,
        "amount": f"{dollars(state.amount_nano_dollars)} a {state.period}",
        "scope": _said(state.scope),
        "whom": state.whom,
        "spent": dollars(state.spent_nano_dollars),
        "held": dollars(state.held_nano_dollars),
        "left": dollars(state.left_nano_dollars),
        "renews_at": state.renews_at,
    }
