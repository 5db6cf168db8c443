"""`python -m mosaic.cli.reference > docs/cli.md`: the page of all commands, from what their help says."""

import inspect
from collections.abc import Callable, Iterable, Iterator

import click

from mosaic.cli.main import COMMANDS, HELP, main
from mosaic.cli.options import (
    Command,
    as_option,
    comment_option,
    etag_option,
    json_option,
    limit_option,
    owner_option,
    property_option,
    together,
    with_settings,
)

REGENERATE = "python -m mosaic.cli.reference > docs/cli.md"

_INTRODUCTION = f"""# The command line

Made from the commands' own help by `{REGENERATE}`; a test holds it true.

Commands about names work on the catalog's database itself, as the administrator, whether the platform runs or not;
whoever cannot reach the database cannot use them. The audit has them as done by `admin` with `mosaic command`.

On a terminal answers are tables; into a pipe, columns without colours or folding; with `--json` one JSON document
whose fields are the records' own. Times are in UTC. An error is one line on stderr, and the exit status 1; wrong
arguments end with 2.

Every command takes the options that say which platform:
"""

_SHARED = """
Options that mean the same in every command that names them:
"""


def reference() -> str:
    """The page."""
    lines = [_INTRODUCTION, *_explained(_of(with_settings)), _SHARED, *_explained(_shared()), ""]
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        lines += [f"## mosaic {name}", ""]
        if name == "grant":
            lines += [HELP[name], ""]
            continue
        if isinstance(command, click.Group):
            lines += [_told(command), ""]
        for path, one in commands(f"mosaic {name}", command):
            lines += _one(path, one)
    return "\n".join(lines).rstrip() + "\n"


def commands(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """A command, or all commands of a group, with how each is called."""
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(f"{path} {name}", inner)
    else:
        yield path, command


def _one(path: str, command: click.Command) -> list[str]:
    context = click.Context(command)
    arguments = [piece for piece in command.collect_usage_pieces(context) if piece != "[OPTIONS]"]
    usual = {_record(option) for option in _of(with_settings)}
    options = [one for one in _options(command) if _record(one) not in usual]
    shared = {_record(option) for option in _shared()}
    usage = " ".join([path, *arguments, *map(_named, options)])
    own = [option for option in options if _record(option) not in shared]
    return [f"    {usage}", "", _told(command), "", *_explained(own), *([""] if own else [])]


def _named(option: click.Option) -> str:
    shown = _record(option)[0].split(", ")[-1]
    return shown if option.required else f"[{shown}]"


def _explained(options: Iterable[click.Option]) -> list[str]:
    return [f"- `{shown}`: {told}" for shown, told in map(_record, options)]


def _record(option: click.Option) -> tuple[str, str]:
    record = option.get_help_record(click.Context(click.Command("mosaic")))
    assert record is not None
    return record[0], " ".join(record[1].split())


def _options(command: click.Command) -> list[click.Option]:
    return [one for one in command.params if isinstance(one, click.Option)]


def _of(decorated: Callable[[Command], Command]) -> list[click.Option]:
    return _options(click.command()(decorated(lambda: None)))


def _shared() -> list[click.Option]:
    return _of(
        together(json_option, limit_option, as_option, etag_option, comment_option, property_option, owner_option)
    )


def _told(command: click.Command) -> str:
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


if __name__ == "__main__":
    click.echo(reference(), nl=False)
