"""`mosaic batch`: models and endpoints over the rows of tables."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
import yaml

from mosaic.cli.options import ADMIN, chosen, json_option, settings_options
from mosaic.cli.show import tell
from mosaic.errors import BadRequest

if TYPE_CHECKING:
    from mosaic.serving.batch import BatchInference, BatchResult, BatchSettings


@click.group()
def batch() -> None:
    """Batch inference: a model or an endpoint over the rows of a table."""


@batch.command()
@click.option(
    "-f",
    "--file",
    "spec",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="What is asked of which rows: batch.yaml (docs/batch.md).",
)
@click.option("--settings", type=click.Path(dir_okay=False, path_type=Path), help="YAML settings of the platform.")
@settings_options[1]
@settings_options[2]
@json_option
def infer(spec: Path, settings: Path | None, storage: str | None, home: str | None, as_json: bool) -> None:
    """One answer for each row of a table, into another table; stopped, the same command goes on where it was."""
    asked = read_batch(spec)
    from mosaic.platform.lifecycle import join

    job = join(chosen(settings, storage, home).home_folder).acting(ADMIN).batch
    result = with_bar(job, asked)
    tell(shown(result), result, as_json)


def read_batch(spec: Path) -> "BatchSettings":
    """The job of a file; raises BadRequest naming the field."""
    from mosaic.serving.batch.settings import BatchSettings

    try:
        given = yaml.safe_load(spec.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadRequest(f"{spec} is not YAML: {error}") from None
    if not isinstance(given, dict):
        raise BadRequest(f"{spec} must hold fields such as table and prompt, not {type(given).__name__}")
    return BatchSettings.parse(given, source=str(spec))


def with_bar(job: "BatchInference", asked: "BatchSettings") -> "BatchResult":
    """Run a job with a bar of its pieces on the terminal, where there is one."""
    import logging

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mosaic.serving.batch import BatchProgress

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("pieces", total=None, told="")

        def follow(now: BatchProgress) -> None:
            told = f"{now.rows:,} rows, {now.errors:,} errors"
            if now.completion_tokens and now.seconds:
                told += f", {now.completion_tokens / now.seconds:.0f} tokens/s"
            bar.update(task, total=now.pieces, completed=now.pieces_done, told=told)

        return job.infer(asked, follow)


def shown(result: "BatchResult") -> str:
    """What a job made, in a line."""
    errors = f", {result.errors:,} with an error" if result.errors else ""
    before = f"; {result.pieces_before} of {result.pieces} pieces were there" if result.pieces_before else ""
    return (
        f"{result.rows:,} rows of {result.input_table}@{result.input_version}{errors} -> "
        f"{result.output_table}@{result.output_version}, {result.completion_tokens:,} tokens, "
        f"{result.seconds:.1f} s{before}"
    )
