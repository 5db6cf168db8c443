"""A batch job as a process of its own, which tells its kill points and may kill itself at one: for test_batch_kill.py.

python batch_driver.py HOME BATCH.json POINT NUMBER     (dies at the NUMBER-th time of POINT; `none` to live)
"""

import json
import os
import signal
import sys
from pathlib import Path

from mosaic.platform.lifecycle import join
from mosaic.serving.batch import BatchSettings


def main(home: str, spec: str, point: str, number: str) -> None:
    batch = join(Path(home)).batch
    seen = 0

    def at(here: str) -> None:
        nonlocal seen
        print(f"at {here}", flush=True)
        seen += here == point
        if here == point and seen == int(number):
            os.kill(os.getpid(), signal.SIGKILL)

    batch.at = at
    print(batch.infer(BatchSettings.parse(json.loads(Path(spec).read_text()))).model_dump_json(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
