"""The platform's life by its own command: up, status, down, twice at once, taken ports, crashes, newer roots."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest

from mosaic.errors import BadRequest, Conflict, MosaicError, Unavailable
from mosaic.platform import Platform, PlatformSettings, load_settings, up
from mosaic.platform.lifecycle import require_fit
from mosaic.runtime.cluster import marked_processes
from mosaic.runtime.home import hold, read_record
from tests.local import local_settings, mosaic, write_settings


def test_a_running_platform_says_how_it_is_and_is_not_started_twice(platform: Platform, settings_file: Path) -> None:
    again = mosaic("up", "-f", str(settings_file))
    assert again.returncode == 1 and "a platform already runs from" in again.stderr
    shown = mosaic("status", "-f", str(settings_file), "--json")
    assert shown.returncode == 0 and {part["state"] for part in json.loads(shown.stdout)} == {"healthy"}


@pytest.mark.faults
def test_a_platform_that_was_killed_comes_back_whole(tmp_path: Path) -> None:
    settings = local_settings(tmp_path / "root")
    file = str(write_settings(settings, tmp_path / "settings.yaml"))
    started = mosaic("up", "-f", file)
    assert started.returncode == 0, started.stderr
    record = read_record(settings.home_folder)
    assert record is not None

    # the process that owns Ray is killed, and so nothing says goodbye
    os.kill(record["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 30
    while psutil.pid_exists(record["pid"]) and time.monotonic() < deadline:
        time.sleep(0.1)
    crashed = mosaic("status", "-f", file)
    assert crashed.returncode == 1 and "it ended without `mosaic down`" in crashed.stderr

    restarted = mosaic("up", "-f", file)
    assert restarted.returncode == 0, restarted.stderr
    assert "token      " not in restarted.stdout  # shown once, at the first start only
    assert not list(marked_processes(record["platform_id"]))
    record = read_record(settings.home_folder)
    assert record is not None

    stopped = mosaic("down", "-f", file)
    assert stopped.returncode == 0 and "mosaic is down" in stopped.stdout
    assert not list(marked_processes(record["platform_id"]))


def test_down_where_nothing_runs_says_so(tmp_path: Path) -> None:
    nothing = mosaic("down", "--storage", str(tmp_path))
    assert nothing.returncode == 0 and "nothing ran from" in nothing.stdout


def test_two_at_once_and_who_holds_it(tmp_path: Path) -> None:
    settings = local_settings(tmp_path)
    with hold(tmp_path, "up"), pytest.raises(Conflict, match=r"`mosaic up` \(process \d+\) is at work on"):
        up(settings)


def test_a_taken_port_is_named_with_its_setting(tmp_path: Path) -> None:
    settings = local_settings(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", settings.haproxy_stats_port))
        taken.listen()
        with pytest.raises(
            BadRequest, match=rf"port {settings.haproxy_stats_port} \(haproxy_stats_port\) .* is taken by process"
        ) as no:
            up(settings)
    assert no.value.param == "haproxy_stats_port" and read_record(tmp_path) is None


def test_a_root_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mosaic.json").write_text(json.dumps({"format": 99, "written_by": "9.9.9"}))
    with pytest.raises(Conflict, match=r"was written by mosaic 9\.9\.9 \(format 99\)"):
        up(local_settings(tmp_path))


def test_what_does_not_fit_is_refused_with_the_sum() -> None:
    require_fit({"gateway": 0.1, "engine": 0.4}, 0.5, "free")
    with pytest.raises(
        Unavailable, match=r"0.1 \(gateway\) \+ 0.5 \(engine\) = 0.6 logical CPUs are wanted, 0.5 are free"
    ):
        require_fit({"gateway": 0.1, "engine": 0.5}, 0.5, "free")


def test_settings_say_what_is_wrong_with_them(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("http_prot: 8000\n")
    with pytest.raises(BadRequest, match=r"settings.yaml: unknown field 'http_prot'; there are .*'http_port'"):
        load_settings(file)
    file.write_text("http_port: eight\n")
    with pytest.raises(BadRequest, match=r"field 'http_port' = 'eight': input should be a valid integer"):
        load_settings(file)
    with pytest.raises(BadRequest, match="cannot be read"):
        load_settings(tmp_path / "none.yaml")
    with pytest.raises(MosaicError, match="no platform runs from"):
        from mosaic.platform.lifecycle import join

        join(tmp_path)


def test_the_file_of_the_laptop_is_the_defaults_written_out() -> None:
    local = load_settings(Path(__file__).parents[2] / "cluster" / "local.yaml")
    assert local.model_copy(update={"engines": {}}) == PlatformSettings()
