"""``mmfast predict RUN TABLE -o out.csv``: what a trained run says of each row of a table."""

from __future__ import annotations

import argparse
import csv
import json
import os

from mmfast.train.commands.common import output_path, told
from mmfast.train.run import Run


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 1 for an error."""
    parser = argparse.ArgumentParser(prog="mmfast predict", description=__doc__)
    parser.add_argument("run", help="folder of the run")
    parser.add_argument("table", help="a table as in data.source; it needs no labels")
    parser.add_argument(
        "-o", "--output", required=True, help="a .csv file, or .jsonl with lists as they are"
    )
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best")
    arguments = parser.parse_args(argv)

    def body() -> int:
        output = output_path("--output", arguments.output, ".csv", ".jsonl")
        run = Run.load(arguments.run, arguments.checkpoint)
        # Beside the file, so that a failure leaves no half of one that looks whole.
        partial = output.with_name(f".{output.name}.partial")
        count = 0
        try:
            with partial.open("w", encoding="utf-8", newline="") as file:
                writer = None
                for record in run.predict(arguments.table):
                    count += 1
                    if output.suffix == ".jsonl":
                        file.write(json.dumps(record) + "\n")
                        continue
                    if writer is None:
                        writer = csv.DictWriter(file, list(record))
                        writer.writeheader()
                    writer.writerow(record)
            os.replace(partial, output)
        except OSError as error:
            raise OSError(f"{output} could not be written: {error.strerror}") from error
        finally:
            partial.unlink(missing_ok=True)
        print(f"{count} rows: {output}")
        return 0

    return told("predict", body)
