"""`mosaic demo`: the whole product once, as a user would run it: up, `ray job submit`, down."""

import os
import subprocess
import sys
from pathlib import Path

import click

from mosaic.cli.options import chosen, with_settings
from mosaic.cli.platform import print_started, start
from mosaic.errors import BadRequest
from mosaic.platform import down as stop_platform
from mosaic.platform.lifecycle import is_running, join
from mosaic.runtime.home import read_record


@click.command()
@with_settings
@click.option("--keep", is_flag=True, envvar="KEEP", help="Leave the platform up afterwards.")
@click.option(
    "--job", default="jobs/quickstart.py", type=click.Path(path_type=Path), help="The driver script to submit."
)
def demo(file: Path | None, storage: str | None, home: str | None, keep: bool, job: Path) -> None:
    """Documents to a governed, fine-tuned, served, retrieving, logged assistant: about ten minutes on two cores."""
    if not job.exists():
        raise BadRequest(f"no driver script {str(job)!r} here; run this in mosaic's own folder, or give --job")
    settings = chosen(file, storage, home)
    ours = not _runs(settings.home_folder)
    kept_after = not ours  # what was up before stays up
    if ours:
        started = start(settings)
        print_started(started)
        platform = started.platform
    else:
        platform = join(settings.home_folder)
        click.echo(f"using the platform that runs at {platform.base_url}")
    try:
        dashboard = platform.cluster.dashboard
        if dashboard is None:
            raise BadRequest("the demo submits to an embedded platform; to a cluster of your own use `ray job submit`")
        python = Path(sys.executable)
        submit = [
            str(python.parent / "ray"),
            "job",
            "submit",
            "--address",
            dashboard,
            "--",
            "python",
            str(job.resolve()),
        ]
        click.echo(f"$ RAY_AUTH_MODE=token ray job submit --address {dashboard} -- python {job}")
        # Ray's client of the parent would hold the terminal's interrupt: the job's output comes through the real
        # command.
        ended = subprocess.run(submit, env={**os.environ, "RAY_AUTH_MODE": "token"}, check=False)
        kept_after = kept_after or keep
        if ended.returncode != 0:
            raise SystemExit(ended.returncode)
    except KeyboardInterrupt:
        click.echo("interrupted; stopping the platform", err=True)
        kept_after = not ours
        raise SystemExit(130) from None
    finally:
        if not _runs(settings.home_folder):
            click.echo("the platform was stopped meanwhile", err=True)
        elif kept_after:
            click.echo(f"the platform stays up: {platform.base_url}/v1 (`mosaic down` stops it)")
        else:
            stop_platform(settings.home_folder)
            click.echo("mosaic is down; its data stays in " + platform.storage.root)


def _runs(home: Path) -> bool:
    record = read_record(home)
    return record is not None and is_running(home, record)
