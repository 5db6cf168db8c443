"""Every command says what it does, and docs/cli.md says the same."""

from collections import Counter
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mosaic.cli import main
from mosaic.cli.main import COMMANDS, HELP
from mosaic.cli.reference import REGENERATE, commands, reference

ROOT = Path(__file__).parents[2]


def every_command() -> list[tuple[str, click.Command]]:
    context = click.Context(main)
    tops = [(name, main.get_command(context, name)) for name in COMMANDS]
    return [found for name, top in tops if top is not None for found in commands(name, top)]


def test_every_command_and_option_has_help() -> None:
    found = every_command()
    assert len(found) > 70
    for path, command in found:
        assert command.help and command.help.strip().endswith("."), path
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, f"{path} {option.name}"
        # Used twice, one of them would be lost.
        names = Counter(name for option in command.params for name in option.opts)
        assert max(names.values(), default=1) == 1, f"{path}: {names}"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_shown(name: str) -> None:
    shown = CliRunner().invoke(main, [name, "--help"])
    assert shown.exit_code == 0 and "Usage:" in shown.output


def test_the_overview_names_every_command() -> None:
    assert list(HELP) == list(COMMANDS)
    shown = CliRunner().invoke(main, ["--help"]).output
    for name, told in HELP.items():
        assert f"  {name} " in shown and told[:40] in shown


def test_the_page_of_commands_is_true() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    assert page == reference(), f"docs/cli.md is stale; make it again with: {REGENERATE}"
