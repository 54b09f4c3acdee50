"""What a run leaves behind, as data: measurements, the machine, and their JSON and CSV."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mmfast.bench.peers import FLOORS
from mmfast.bench.timing import Spread, ratio, spread

FORMAT = 2  # 1 knew of concat_linear alone, and did not name it


@dataclass(frozen=True)
class Result:
    """One peer on one measurement.

    Attributes:
        times_s: seconds per call of each round; the rounds of all peers correspond.
        peak_bytes: the most a call allocates at one time; None where it was not measured. Of
            ``backward`` it includes the forward pass.
        kept_bytes: what forward keeps for backward; None where there is no backward.
        kept_extra_bytes: the same without inputs and parameters.
    """

    times_s: list[float]
    peak_bytes: int | None = None
    kept_bytes: int | None = None
    kept_extra_bytes: int | None = None

    @cached_property
    def time(self) -> Spread:
        """Median and quartiles of the seconds per call."""
        return spread(self.times_s)


@dataclass(frozen=True)
class Measurement:
    """All peers on one case, dtype and mode.

    Attributes:
        case, group, kind, series, size, axis, activation: see :class:`mmfast.bench.cases.Case`.
        shape: the case's shapes in words.
        rows: M of the result.
        width: sum of the inputs' K, or elements per row of all that has rows.
        out_features: N, or elements per row of the result.
        dtype: without the ``torch.`` prefix.
        mode: ``forward`` (without autograd), ``backward`` or ``both``.
        threads: of torch.
        moved_bytes: what must be read and written at least; ``copy`` moves as many.
        flops: of concat_linear those of the linear layer on the concatenation.
        result_bytes: size of the result.
        peers: results by peer, ``copy`` and ``linear`` among them.
        refused: by peer, why it was not timed.
        operator: what is measured.
    """

    case: str
    group: str
    kind: str
    series: str
    size: float
    axis: str
    activation: str
    shape: str
    rows: int
    width: int
    out_features: int
    dtype: str
    mode: str
    threads: int
    moved_bytes: int
    flops: int
    result_bytes: int
    peers: dict[str, Result]
    refused: dict[str, str] = field(default_factory=dict)
    operator: str = "concat_linear"

    @property
    def key(self) -> tuple[str, str, str, str, str, int]:
        """What identifies the measurement in another run."""
        return (self.operator, self.case, self.shape, self.dtype, self.mode, self.threads)

    @property
    def label(self) -> str:
        """The key in words."""
        return f"{self.case}, {self.dtype}, {self.mode}"

    @property
    def rivals(self) -> list[str]:
        """Peers that compute the same as mmfast."""
        return [name for name in self.peers if name not in (*FLOORS, "mmfast")]

    @property
    def base(self) -> str:
        """The peer that a run is compared with another by: no change of mmfast changes it."""
        return "linear" if self.operator == "concat_linear" else "eager"

    @property
    def best(self) -> str | None:
        """The fastest rival."""
        return min(self.rivals, key=lambda name: self.peers[name].time.median, default=None)

    def ratio(self, peer: str, base: str) -> Spread | None:
        """Time of ``peer`` over time of ``base``, round by round; None where one is missing."""
        if peer not in self.peers or base not in self.peers:
            return None
        return ratio(self.peers[peer].times_s, self.peers[base].times_s)


@dataclass(frozen=True)
class Run:
    """Measurements of one run.

    Attributes:
        machine: processor, cores, threads, isa, device.
        versions: mmfast, torch, python.
        date: of the start, ISO 8601 with time zone.
        command: what was asked for.
        measurements: in the order they were made.
        skipped: by case, dtype and mode, why it was not measured.
        load: processes that wanted a core in the minute before the run, on average.
        elapsed_s: of the whole run.
    """

    machine: dict[str, Any]
    versions: dict[str, str]
    date: str
    command: str
    measurements: list[Measurement]
    skipped: dict[str, str] = field(default_factory=dict)
    load: float = 0.0
    elapsed_s: float = 0.0

    @property
    def key(self) -> str:
        """Machine and versions as a file name: what may be compared with what."""
        m, v = self.machine, self.versions
        where = m["processor"] if m["device"] == "cpu" else m["device"]
        words = f"{where} {m['threads']}t {m['isa']} torch-{v['torch']} mmfast-{v['mmfast']}"
        return re.sub(r"[^a-z0-9._]+", "-", words.lower()).strip("-")


def save_json(run: Run, path: Path) -> None:
    """Writes a run, one measurement a line so that two runs can be told apart by ``diff``."""
    head = {"format": FORMAT, **asdict(run)}
    lines = ",\n".join(json.dumps(m) for m in map(_rounded, head["measurements"]))
    head["measurements"] = []
    text = json.dumps(head, indent=1).replace(
        '"measurements": []', f'"measurements": [\n{lines}\n]'
    )
    path.write_text(text + "\n", encoding="utf-8")


def load_json(path: Path) -> Run:
    """Reads what :func:`save_json` wrote.

    Raises:
        ValueError: the file is not such a run.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.pop("format") not in (1, FORMAT):
            raise ValueError(f"it is not of format 1 or {FORMAT}")
        measurements = [
            Measurement(**{**m, "peers": {name: Result(**r) for name, r in m["peers"].items()}})
            for m in found.pop("measurements")
        ]
        return Run(measurements=measurements, **found)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is not the JSON of a benchmark run: {error}") from error


def save_csv(run: Run, path: Path) -> None:
    """Writes one line per measurement and peer, the machine and the versions on each."""
    rows = [_flat(run, m, peer) for m in run.measurements for peer in m.peers]
    with path.open("w", newline="", encoding="utf-8") as file:
        if rows:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def _flat(run: Run, m: Measurement, peer: str) -> dict[str, Any]:
    result, floor = m.peers[peer], m.ratio(peer, "linear")
    columns = (
        "operator",
        "case",
        "group",
        "kind",
        "shape",
        "rows",
        "width",
        "out_features",
        "dtype",
        "mode",
    )
    return {
        "date": run.date,
        **{name: run.machine[name] for name in ("processor", "cores", "isa", "device")},
        **run.versions,
        **{name: getattr(m, name) for name in (*columns, "threads")},
        "peer": peer,
        "median_s": f"{result.time.median:.4g}",
        "low_s": f"{result.time.low:.4g}",
        "high_s": f"{result.time.high:.4g}",
        "rounds": len(result.times_s),
        "over_linear": f"{floor.median:.4g}" if floor else "",
        "gbyte_per_s": f"{m.moved_bytes / result.time.median / 1e9:.4g}",
        "gflop_per_s": "" if peer == "copy" else f"{m.flops / result.time.median / 1e9:.4g}",
        "peak_bytes": result.peak_bytes,
        "kept_bytes": result.kept_bytes,
        "kept_extra_bytes": result.kept_extra_bytes,
    }


def _rounded(measurement: dict[str, Any]) -> dict[str, Any]:
    for result in measurement["peers"].values():
        result["times_s"] = [float(f"{time:.4g}") for time in result["times_s"]]
    return measurement
