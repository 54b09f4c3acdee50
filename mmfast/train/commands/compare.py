"""``mmfast compare RUN RUN ...``: which of several runs is better, and what is only noise."""

from __future__ import annotations

import argparse
import json

from rich.console import Console as RichConsole

from mmfast.train.commands.common import output_path, told
from mmfast.train.compare import compare_runs, comparison_table, explanation, pairs_table
from mmfast.train.console import Console
from mmfast.train.report import write_comparison


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 1 for an error."""
    parser = argparse.ArgumentParser(prog="mmfast compare", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run; at least two")
    parser.add_argument("--metric", help="by which to compare; by default that of the task")
    parser.add_argument("-o", "--output", metavar="FILE", help="an .html file to write it to too")
    parser.add_argument("--json", metavar="FILE", help="a .json file to write it to too")
    parser.add_argument(
        "--fresh", action="store_true", help="predict anew, whatever is stored in the runs' folders"
    )
    arguments = parser.parse_args(argv)

    def body() -> int:
        page = output_path("--output", arguments.output, ".html") if arguments.output else None
        data = output_path("--json", arguments.json, ".json") if arguments.json else None
        with Console() as console:
            found = compare_runs(
                arguments.runs,
                metric=arguments.metric,
                fresh=arguments.fresh,
                notify=console.on_prepare,
            )
        rich = RichConsole()
        for warning in found.warnings:
            rich.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)
        rich.print(comparison_table(found))
        rich.print(pairs_table(found))
        rich.print(explanation(found), markup=False, highlight=False)
        if data:
            data.write_text(json.dumps(found.as_dict(), indent=2) + "\n", encoding="utf-8")
        if page:
            print(write_comparison(found, page))
        return 0

    return told("compare", body)
