"""The command line's root: what is shared by all commands, and how an error leaves."""

import logging
import sys
from typing import Any

import click

import mosaic
from mosaic.cli import demo, grants, platform, sql, token, vacuum, why
from mosaic.errors import MosaicError


class _Group(click.Group):
    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except MosaicError as error:
            click.echo(f"mosaic: {error.message}", err=True)
            sys.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "MOSAIC"})
@click.version_option(mosaic.__version__)
def main() -> None:
    """mosaic: data to a served, governed, monitored assistant, on your own Ray cluster."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)


main.add_command(platform.up)
main.add_command(platform.status)
main.add_command(platform.down)
main.add_command(token.token)
main.add_command(grants.grants)
main.add_command(sql.sql)
main.add_command(why.why)
main.add_command(vacuum.vacuum)
main.add_command(demo.demo)
