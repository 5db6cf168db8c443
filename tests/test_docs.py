"""The documents run: README's Python against the platform, its commands against the command line, and every named file
exists."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from mosaic.cli import main
from mosaic.platform import Platform
from mosaic.serving.ai_gateway import Guardrails
from mosaic.serving.endpoint import EndpointSettings, ServedEntity
from mosaic.serving.external import ExternalModel

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_readmes_python_runs(platform: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    arm = ServedEntity(name="echo", model="echo")
    platform.serving.put(EndpointSettings(name="assistant", served_entities=[arm]))
    platform.serving.wait("assistant")
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(compile(snippet, "README.md", "exec"), {})
    assert "How do I get the square root of a number?" in capsys.readouterr().out


def test_the_readmes_commands_exist() -> None:
    for command in set(re.findall(r"^ +mosaic (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)):
        shown = CliRunner().invoke(main, [command, "--help"])
        assert shown.exit_code == 0 and command in shown.output


def test_the_yaml_of_pages_is_what_it_says() -> None:
    def blocks(page: str) -> list[Any]:
        found = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
        return [yaml.safe_load(one) for one in found]

    endpoint = EndpointSettings.parse(blocks("gateway.md")[0])
    assert len(endpoint.ai_gateway.rate_limits) == 3 and endpoint.ai_gateway.fallback_config.enabled
    for block in blocks("gateway.md"):
        if "served_entities" in block:
            EndpointSettings.parse(block, source="docs/gateway.md")
        elif block.keys() <= {"input", "output"}:
            assert Guardrails.parse(block, source="docs/gateway.md").sides
    assert EndpointSettings.parse(blocks("serving.md")[0]).name == "helper"
    assert ExternalModel.parse(blocks("providers.md")[0]).provider == "anthropic"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(r"\]\(([^)#:]+)\)", text))
    missing = [name for name in named if not (page.parent / name).exists()]
    code = set(re.findall(r"`((?:mosaic|jobs|docs|cluster|tests|scripts)/[\w/.]+\.\w+)`", text))
    missing += [name for name in code if not (ROOT / name).exists()]
    assert not missing, f"{page.name} names files that do not exist: {missing}"
