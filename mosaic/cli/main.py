"""The command line's root: what is shared by all commands, and how an error leaves."""

import importlib
import logging
import sys
from typing import Any

import click

import mosaic
from mosaic.errors import MosaicError

COMMANDS = {
    "up": "platform:up",
    "status": "platform:status",
    "down": "platform:down",
    "catalog": "catalog:catalog",
    "schema": "schema:schema",
    "table": "table:table",
    "volume": "volume:volume",
    "function": "function:function",
    "model": "model:model",
    "prompt": "prompt:prompt",
    "endpoint": "endpoint:endpoint",
    "policy": "policy:policy",
    "quota": "quota:quota",
    "budget": "budget:budget",
    "price": "price:price",
    "usage": "usage:usage",
    "batch": "batch:batch",
    "connection": "connection:connection",
    "tag": "tag:tag",
    "search": "search:search",
    "dropped": "search:dropped",
    "undrop": "search:undrop",
    "user": "user:user",
    "group": "group:group",
    "token": "token:token",
    "grants": "grants:grants",
    "grant": "grants:grants",
    "audit": "audit:audit",
    "sql": "sql:sql",
    "why": "why:why",
    "impact": "impact:impact",
    "vacuum": "vacuum:vacuum",
    "demo": "demo:demo",
}
"""Each command's file and name in it, in the order in which help shows them. Imported when it is run: some need Ray."""

HELP = {
    "up": "Start the platform.",
    "status": "Show each part: healthy, starting, or failed and why.",
    "down": "Stop the platform; nothing is lost, no process stays.",
    "catalog": "Catalogs, the first of the three levels of names.",
    "schema": "Schemas, which hold tables, models and all else.",
    "table": "Tables: make them, list them, their versions and first rows.",
    "volume": "Volumes: folders of files with a name and an owner.",
    "function": "Functions: code with a name, a signature and an owner.",
    "model": "Registered models, their versions and aliases.",
    "prompt": "Prompts: templates with versions and aliases.",
    "endpoint": "Serving endpoints: what models answer under which names.",
    "policy": "Policies: guardrail rules with versions, attached to endpoints.",
    "quota": "What is left of the rate limits of an endpoint.",
    "budget": "Budgets: so much money a day or month, for whom and what.",
    "price": "Prices of models, in versions.",
    "usage": "Requests, tokens and money by user, model, day, endpoint or tag.",
    "batch": "Batch inference: a model or an endpoint over the rows of a table.",
    "connection": "Connections: external providers, with their secrets.",
    "tag": "Tags: keys with values on anything in the catalog.",
    "search": "Find things by words and tags.",
    "dropped": "Show what was dropped and is still there.",
    "undrop": "Bring back what was dropped.",
    "user": "Users and services, which have tokens and grants.",
    "group": "Groups of users, services and groups, to grant to.",
    "token": "Access tokens: shown once, stored as hashes.",
    "grants": "Who may do what, and why.",
    "grant": "The same as grants.",
    "audit": "Who changed what, and who was refused what.",
    "sql": "Run one statement over the catalog's tables.",
    "why": "Show what an answer came from.",
    "impact": "Show what depends on a table.",
    "vacuum": "Remove files that nobody needs any more.",
    "demo": "The whole product once, as a user would run it.",
}
"""What `mosaic --help` says of each, so that it need not import them."""


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(f"mosaic.cli.{module}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(HELP.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MosaicError as error:
            from mosaic.cli.show import clean

            click.echo(f"mosaic: {clean(error.message)}", err=True)
            sys.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "MOSAIC"})
@click.version_option(mosaic.__version__)
def main() -> None:
    """mosaic: data to a served, governed, monitored assistant, on your own Ray cluster."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
