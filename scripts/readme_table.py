"""Prints README's table of measured shapes from a run's JSON.

python scripts/readme_table.py benchmarks/results/*.json
"""

from __future__ import annotations

import sys
from pathlib import Path

from mmfast.bench.records import Measurement, load_json

COLUMNS = [
    ("float32", "forward"),
    ("float32", "both"),
    ("bfloat16", "forward"),
    ("bfloat16", "both"),
]
PEERS = ("eager", "split")


def cell(measurement: Measurement) -> str:
    """Time of each peer over mmfast's."""
    ratios = [measurement.ratio(peer, "mmfast").median for peer in PEERS]
    return " / ".join(f"{ratio:.2f}" for ratio in ratios)


def main() -> int:
    """Reads the file named on the command line; returns the exit status."""
    run = load_json(Path(sys.argv[1]))
    cases: dict[str, dict[tuple[str, str], Measurement]] = {}
    for measurement in run.measurements:
        if measurement.group in ("real", "tiny"):
            key = (measurement.dtype, measurement.mode)
            cases.setdefault(measurement.case, {})[key] = measurement
    for name, found in cases.items():
        shape = next(iter(found.values())).shape.replace(" -> ", " to ")
        cells = " | ".join(cell(found[key]) if key in found else "-" for key in COLUMNS)
        print(f"| {name}: {shape} | {cells} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
