"""``mmfast evaluate RUN``: measure a trained run on its test split, or on another table."""

from __future__ import annotations

import argparse
import json

from mmfast.train.commands.common import output_path, print_metrics, told
from mmfast.train.run import Run


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 1 for an error."""
    parser = argparse.ArgumentParser(prog="mmfast evaluate", description=__doc__)
    parser.add_argument("run", help="folder of the run")
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument("--data", metavar="TABLE", help="another table, all its rows")
    rows.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best")
    parser.add_argument("--json", metavar="FILE", help="a .json file to write the metrics to too")
    arguments = parser.parse_args(argv)

    def body() -> int:
        output = output_path("--json", arguments.json, ".json") if arguments.json else None
        run = Run.load(arguments.run, arguments.checkpoint)
        metrics = run.evaluate(arguments.data, arguments.split)
        print_metrics(f"{arguments.run}: {arguments.data or arguments.split}", metrics)
        if output:
            output.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        return 0

    return told("evaluate", body)
