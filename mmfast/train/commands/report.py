"""``mmfast report RUN [RUN ...]``: one HTML page of a run, or of several compared."""

from __future__ import annotations

import argparse
import warnings

from mmfast.train.commands.common import output_path, told
from mmfast.train.compare import compare_runs
from mmfast.train.console import Console
from mmfast.train.report import write_comparison, write_report
from mmfast.train.report.run import EXAMPLES


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 1 for an error."""
    parser = argparse.ArgumentParser(prog="mmfast report", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="an .html file; by default RUN/report.html of one run",
    )
    parser.add_argument(
        "--examples",
        type=int,
        default=EXAMPLES,
        metavar="N",
        help=f"rows to show of those most wrong, of one run (default: {EXAMPLES})",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="predict anew, whatever is stored in the run's folder"
    )
    arguments = parser.parse_args(argv)
    if arguments.examples < 0:
        parser.error(f"--examples must be at least 0, got {arguments.examples}")

    def body() -> int:
        given = arguments.output
        output = output_path("--output", given, ".html") if given else None
        with Console() as console, warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torchmetrics")
            if len(arguments.runs) == 1:
                written = write_report(
                    arguments.runs[0],
                    output,
                    examples=arguments.examples,
                    fresh=arguments.fresh,
                    notify=console.on_prepare,
                )
            elif output is None:
                raise ValueError("a page of several runs belongs to none of them: name it by -o")
            else:
                found = compare_runs(
                    arguments.runs, fresh=arguments.fresh, notify=console.on_prepare
                )
                written = write_comparison(found, output)
        print(written)
        return 0

    return told("report", body)
