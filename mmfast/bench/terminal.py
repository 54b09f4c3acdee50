"""A run on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmfast.bench.compare import Change, Comparison
from mmfast.bench.goal import Goal
from mmfast.bench.goals import geometric_means, goals
from mmfast.bench.records import Measurement, Result, Run
from mmfast.bench.run import AnyCase

CAPTION = (
    "mmfast: median per call ± half the distance of the quartiles. linear, eager, ...: time of the "
    "peer over mmfast's, round by round; above 1 mmfast is faster, red where it loses by more than "
    "the spread. linear is the library's linear layer alone on a concatenated input, copy a copy "
    "of the bytes that must be moved, into new memory: their columns are the fraction of that "
    "ceiling."
)
MEMORY_CAPTION = (
    "Real shapes. peak: the most that a call allocates at one time, its results included. kept: "
    "what forward keeps for backward besides inputs and parameters."
)

BUSY = 0.5  # load average
SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_OWN = ("copy", "mmfast")


def print_run(run: Run, console: Console) -> None:
    """Prints the measurements, the means by group and the goals."""
    if run.load > BUSY:
        console.print(
            f"[yellow]The machine had other work in the minute before (load {run.load:.1f}):[/] "
            "where threads wait for each other, a figure can be many times too large."
        )
    for operator, measurements in by_operator(run.measurements).items():
        console.print(f"[bold]{operator}[/]", highlight=False)
        console.print(results_table(measurements))
        training = [m for m in measurements if (m.group, m.mode) == ("real", "both")]
        if any(result.peak_bytes for m in training for result in m.peers.values()):
            console.print(memory_table(training))
    if run.measurements:
        console.print(means_table(run.measurements))
        if found := goals(run.measurements):
            console.print(goals_table(found))
    for label, reason in run.skipped.items():
        console.print(f"not measured: {label}: {reason}", highlight=False)
    for label, reason in refusals(run).items():
        console.print(f"[red]refused:[/] {label}: {reason}", highlight=False)


def by_operator(measurements: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    """The measurements of each operator."""
    found: dict[str, list[Measurement]] = {}
    for m in measurements:
        found.setdefault(m.operator, []).append(m)
    return found


def refusals(run: Run) -> dict[str, str]:
    """Peers that were not timed because they fail or disagree: reason by peer and case."""
    return {
        f"{peer}, {m.case}, {m.dtype}": reason
        for m in run.measurements
        for peer, reason in m.refused.items()
    }


def others(measurements: Sequence[Measurement]) -> list[str]:
    """Every peer but mmfast and copy that takes part somewhere, ``linear`` first."""
    return list(dict.fromkeys(p for m in measurements for p in m.peers if p not in _OWN))


def results_table(measurements: Sequence[Measurement]) -> Table:
    """One line per measurement; see :data:`CAPTION`."""
    table = _table(CAPTION)
    for heading in ("case", "dtype", "mode"):
        table.add_column(heading, no_wrap=heading != "case", min_width=4)
    peers = ("copy", *others(measurements))
    for heading in ("mmfast", *peers):
        table.add_column(heading, justify="right", no_wrap=True)
    last = ""
    for m in measurements:
        name = "" if m.case == last else m.case
        last = m.case
        cells = [_ratio(m, peer) for peer in peers]
        table.add_row(name, SHORT[m.dtype], m.mode, _time(m), *cells)
    return table


def memory_table(measurements: Sequence[Measurement]) -> Table:
    """One line per measurement that includes a backward pass; see :data:`MEMORY_CAPTION`."""
    table = _table(MEMORY_CAPTION)
    names = [name for name in ("mmfast", *others(measurements)) if name != "linear"]
    table.add_column("case")
    table.add_column("dtype", no_wrap=True)
    for what in ("peak", "kept"):
        for name in names:
            table.add_column(f"{what}\n{name}", justify="right", no_wrap=True)
    for m in measurements:
        results = [m.peers.get(name, Result([])) for name in names]
        peaks = (size(result.peak_bytes) for result in results)
        kept = (size(result.kept_extra_bytes) for result in results)
        table.add_row(m.case, SHORT[m.dtype], *peaks, *kept)
    return table


def means_table(measurements: Sequence[Measurement]) -> Table:
    """Geometric means by operator, group, kind, dtype and mode."""
    table = _table("Geometric means of peer over mmfast; above 1 mmfast is faster.")
    columns = ("operator", "group", "kind", "dtype", "mode", "count", *others(measurements))
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in geometric_means(measurements):
        table.add_row(*(_mean(row.get(column)) for column in columns))
    return table


def goals_table(found: Sequence[Goal]) -> Table:
    """Goals and whether they are met."""
    table = _table("")
    table.add_column("goal")
    for heading in ("figure", "bound", "met"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("where")
    for goal in found:
        met = Text("yes", "green") if goal.met else Text("no", "bold red")
        bound = f"{'<=' if goal.at_most else '>='} {goal.bound:g}"
        table.add_row(goal.name, f"{goal.value:.3g} {goal.unit}", bound, met, goal.where)
    return table


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Says what became slower and what faster."""
    for difference in comparison.differs:
        console.print(f"[yellow]not the same in both runs:[/] {difference}", highlight=False)
    table = _table("mmfast over linear alone or eager, with quartiles, in the old run and in this")
    for heading in ("", "case", "old", "new", "change"):
        table.add_column(heading, no_wrap=heading != "case")
    for change in (*comparison.slower, *comparison.faster):
        verdict = Text("slower", "bold red") if change.slower else Text("faster", "green")
        old, new = _quartiles(change, "old"), _quartiles(change, "new")
        table.add_row(verdict, change.measurement.label, old, new, f"{change.factor:.2f} x")
    if table.row_count:
        console.print(table)
    for label in comparison.lost:
        console.print(f"[bold red]refused now:[/] {label}", highlight=False)
    console.print(
        f"{len(comparison.changes)} measurements in common: {len(comparison.slower)} slower, "
        f"{len(comparison.faster)} faster, the others within the spread. "
        f"{len(comparison.missing)} of the old run were not measured.",
        highlight=False,
    )


def cases_table(cases: Sequence[AnyCase]) -> Table:
    """What ``--list`` prints."""
    table = _table("")
    for heading in ("operator", "group", "case", "inputs -> result", "origin"):
        table.add_column(heading, no_wrap=heading == "group")
    for case in cases:
        table.add_row(case.operator, case.group, case.name, Text(case.describe()), case.origin)
    return table


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def size(count: float | None) -> str:
    """Bytes in the unit that suits them."""
    if count is None:
        return "-"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} B"


def _table(caption: str) -> Table:
    return Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption=caption or None,
        caption_justify="left",
    )


def _time(m: Measurement) -> str:
    if "mmfast" not in m.peers:
        return "refused"
    time = m.peers["mmfast"].time
    return f"{duration(time.median)} ±{100 * time.relative:.0f}%"


def _ratio(m: Measurement, peer: str) -> Text:
    found = m.ratio(peer, "mmfast")
    if found is None:
        return Text("-")
    lost = found.high < 1 and peer not in ("copy", "linear")
    won = found.low > 1 and peer != "copy"
    return Text(f"{found.median:.2f}", "red" if lost else "green" if won else "")


def _mean(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _quartiles(change: Change, which: str) -> str:
    found = getattr(change, which)
    return f"{found.median:.2f} ({found.low:.2f}-{found.high:.2f})"
