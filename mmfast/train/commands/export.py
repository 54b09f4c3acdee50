"""``mmfast export RUN -o model.pt2``: a trained model as a ``torch.export`` program."""

from __future__ import annotations

import argparse

from mmfast.train.commands.common import output_path, told
from mmfast.train.run import Run


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 1 for an error."""
    parser = argparse.ArgumentParser(prog="mmfast export", description=__doc__)
    parser.add_argument("run", help="folder of the run")
    parser.add_argument("-o", "--output", required=True, help="a .pt2 file")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best")
    arguments = parser.parse_args(argv)

    def body() -> int:
        output = output_path("--output", arguments.output, ".pt2")
        print(Run.load(arguments.run, arguments.checkpoint).export(output))
        return 0

    return told("export", body)
