"""``mmfast export RUN -o model.pt2``: a trained model as a ``torch.export`` program."""

from __future__ import annotations

import argparse

from mmfast.train.commands.common import told
from mmfast.train.run import Run


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 1 for an error."""
    parser = argparse.ArgumentParser(prog="mmfast export", description=__doc__)
    parser.add_argument("run", help="folder of the run")
    parser.add_argument("-o", "--output", required=True, help="a .pt2 file")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best")
    arguments = parser.parse_args(argv)

    def body() -> int:
        if not arguments.output.endswith(".pt2"):
            raise ValueError(f"--output is {arguments.output}; it must end in .pt2")
        print(Run.load(arguments.run, arguments.checkpoint).export(arguments.output))
        return 0

    return told("export", body)
