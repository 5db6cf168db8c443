"""A model or an endpoint over the rows of a table, as a Ray job: batch.yaml says which (docs/batch.md).

    ray job submit --address http://127.0.0.1:8265 -- python jobs/batch_inference.py batch.yaml

Stopped or killed, the same line goes on where it was: no row is answered twice in the output, none is missing.
"""

import argparse
import logging
from pathlib import Path

from rich.console import Console

import mosaic
from mosaic.cli.batch import read_batch, shown, with_bar


def main(arguments: argparse.Namespace) -> None:
    platform = mosaic.init()
    result = with_bar(platform.batch, read_batch(arguments.batch))
    Console().print(shown(result), highlight=False, soft_wrap=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Batch inference over a table.")
    parser.add_argument("batch", type=Path, help="what is asked of which rows: batch.yaml")
    return parser.parse_args()


if __name__ == "__main__":
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        main(parse_arguments())
    except mosaic.errors.MosaicError as error:
        Console(stderr=True).print(f"batch inference: {error.message}", style="red", markup=False, soft_wrap=True)
        raise SystemExit(1) from error
