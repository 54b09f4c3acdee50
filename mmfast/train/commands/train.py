"""``mmfast train CONFIG [KEY=VALUE ...]``: train what a configuration describes."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path

from rich.console import Console as RichConsole

from mmfast.train.commands.common import told
from mmfast.train.config import load_config
from mmfast.train.console import Console
from mmfast.train.run import fit


def main(argv: list[str] | None = None) -> int:
    """Returns 0, 1 for an error, 143 after SIGTERM and 130 after SIGINT."""
    parser = argparse.ArgumentParser(prog="mmfast train", description=__doc__)
    parser.add_argument("config", help="YAML file; `mmfast config schema` describes it")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as train.lr=3e-4")
    parser.add_argument(
        "--resume",
        choices=("never", "auto"),
        default="never",
        help="auto: go on from the last checkpoint in run.dir, if there is one",
    )
    parser.add_argument(
        "--no-report", action="store_true", help="write no report.html into run.dir at the end"
    )
    arguments = parser.parse_intermixed_args(argv)

    def body() -> int:
        config = load_config(arguments.config, arguments.overrides)
        speaks = os.environ.get("RANK", "0") == "0"
        with Console(RichConsole(quiet=not speaks)) as console:
            run = fit(
                config,
                resume=arguments.resume == "auto",
                listener=console,
                notify=console.on_prepare,
            )
        if speaks and run.signal is not None:
            print(f"interrupted; --resume auto goes on from step {run.progress.step}")
        elif speaks:
            if not arguments.no_report:
                _report(run.path)
            print(
                f"trained: {run.path}; `mmfast evaluate {run.path}` measures it on its test split"
            )
        return 0 if run.signal is None else 128 + run.signal

    return told("train", body)


def _report(run: Path) -> None:
    """Write the report of a run that is finished and stays so, whatever goes wrong here."""
    try:
        from mmfast.train.report import write_report

        with Console() as console:
            print(f"report: {write_report(run, notify=console.on_prepare)}")
    except Exception as error:
        if os.environ.get("MMFAST_TRACEBACK") == "1":
            traceback.print_exc()
        print(
            f"mmfast train: the report could not be written: {error}\n"
            f"The run is whole; `mmfast report {run}` tries again.",
            file=sys.stderr,
        )
