"""The process that owns an embedded Ray: `python -m mosaic.runtime.head SPEC`, started by `mosaic up`, ended by
SIGTERM.

Ray's processes are children of this small one: they inherit its environment, which binds them to loopback
(`mosaic.runtime.cluster.LOOPBACK`) and marks them as this platform's, and they end with it.
"""

import fcntl
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any


def main(spec: dict[str, Any]) -> None:
    """Start Ray as `spec` says, write the record when it is up, and hold it until SIGTERM or SIGINT."""
    # Held for life and released by the kernel: whoever can take it knows that this process is gone, however it ended.
    lock = os.open(spec["lock_file"], os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())

    import ray
    from ray._private.utils import write_ray_address

    context = ray.init(
        address="local",  # never whatever other Ray this machine happens to run
        num_cpus=spec["num_cpus"],
        num_gpus=spec["num_gpus"],
        object_store_memory=spec["object_store_memory_bytes"],
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=spec["dashboard_port"],
        namespace="mosaic",
        log_to_driver=False,
        _temp_dir=spec["temp_dir"],
    )
    # `ray start` does the same: the driver of a submitted job looks here for its cluster, and otherwise takes any Ray
    # that runs on this machine.
    write_ray_address(context.address_info["address"], spec["temp_dir"])
    record = {
        "pid": os.getpid(),
        "address": context.address_info["address"],
        "dashboard": f"http://127.0.0.1:{spec['dashboard_port']}",
        "session_dir": context.address_info["session_dir"],
    }
    partial = Path(spec["record_file"] + ".partial")
    partial.write_text(json.dumps(record))
    partial.rename(spec["record_file"])
    stop.wait()
    ray.shutdown()
    Path(spec["record_file"]).unlink(missing_ok=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
