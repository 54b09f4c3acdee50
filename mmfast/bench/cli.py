"""``mmfast bench``: measures, prints, writes JSON, CSV and a page, compares with an older run."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mmfast.bench import html, shapes, terminal
from mmfast.bench.compare import compare
from mmfast.bench.records import Run, load_json, save_csv, save_json
from mmfast.bench.run import DTYPES, MODES, AnyCase, Settings, affordable_bytes, cores, run

EPILOG = (
    "Without an option it measures every operator on the shapes of real models, tiny ones and "
    "sweeps, in some 20 minutes on 2 cores (--operator and --limit shorten it). Exit status: 0, or "
    "1 where mmfast disagrees with eager PyTorch or --compare finds something slower, or 2 for "
    "wrong arguments."
)
# Seconds that one measurement may take, and groups in which torch.compile takes part.
LIMIT_S = {"default": 1.5, "quick": 0.3, "grid": 0.8, "gpu": 0.3}
COMPILE = {"default": ("real", "tiny"), "quick": (), "grid": ("real", "tiny"), "gpu": ()}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the benchmarks; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    console = Console()
    name = next((x for x in ("quick", "grid", "gpu") if getattr(options, x)), "default")
    cases = shapes.suite(
        name, threads=options.threads, only=options.only, operators=options.operator
    )
    if not cases and options.grid and "concat_linear" not in options.operator:
        parser.error("argument --grid: the grid is concat_linear's, which --operator leaves out")
    if not cases:
        parser.error(f"argument --only: no case of this suite matches {options.only!r}; see --list")
    if options.list:
        console.print(terminal.cases_table(cases))
        return 0
    old = _load(parser, options.compare)
    command = shlex.join(["mmfast", "bench", *(sys.argv[1:] if argv is None else argv)])
    found = _run_with_progress(cases, _settings(options, name), command, console)
    terminal.print_run(found, console)
    for path in save(found, options.out):
        console.print(f"written: {path}", soft_wrap=True, highlight=False)
    status = 1 if any("mmfast" in m.refused for m in found.measurements) else 0
    if old is None:
        return status
    try:
        comparison = compare(old, found)
    except ValueError as error:
        parser.error(f"argument --compare: {options.compare}: {error}")
    terminal.print_comparison(comparison, console)
    return max(status, int(comparison.failed))


def save(run: Run, out: Path) -> list[Path]:
    """Writes a run as JSON, CSV and HTML, named after machine and versions; returns the paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{run.key}.{suffix}" for suffix in ("json", "csv", "html")]
    save_json(run, paths[0])
    save_csv(run, paths[1])
    paths[2].write_text(html.page(run), encoding="utf-8")
    return paths


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmfast bench",
        description="Time mmfast against what users write today, in turns, with its ceilings.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    suites = parser.add_mutually_exclusive_group()
    suites.add_argument("--quick", action="store_true", help="a part of it, in under a minute")
    suites.add_argument("--grid", action="store_true", help="concat_linear alone, with its grid")
    suites.add_argument("--gpu", action="store_true", help="shapes that fill a large GPU")
    add("--only", type=_pattern, default="", metavar="REGEX", help="cases whose name it matches")
    add(
        "--operator",
        type=_choices(shapes.OPERATORS),
        default=shapes.OPERATORS,
        metavar="A,B",
        help=f"of {', '.join(shapes.OPERATORS)} (default: all)",
    )
    add("--dtype", type=_choices(DTYPES), default=("float32", "bfloat16"), metavar="A,B")
    add("--mode", type=_choices(MODES), default=("forward", "both"), metavar="A,B")
    add("--threads", type=_at_least_one, default=cores(), help="of torch (default: %(default)s)")
    add("--device", type=_device, default="cpu", help="cpu or cuda (default: %(default)s)")
    add(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="let torch.compile take part (default: for real and tiny shapes, but in --quick)",
    )
    add("--limit", type=_seconds, metavar="SECONDS", help="for one measurement, if rounds allow")
    add("--no-memory", action="store_true", help="leave out peak and training memory")
    add(
        "--out",
        type=_directory,
        default=Path("runs/bench"),
        help="directory (default: %(default)s)",
    )
    add("--compare", type=Path, metavar="OLD.json", help="say what became slower since that run")
    add("--list", action="store_true", help="list the cases and measure nothing")
    return parser


def _settings(options: argparse.Namespace, name: str) -> Settings:
    compile = COMPILE[name]
    if options.compile is not None:
        compile = ("real", "tiny", "grid", "sweep") if options.compile else ()
    return Settings(
        modes=options.mode,
        dtypes=options.dtype,
        threads=options.threads,
        device=options.device,
        compile=compile,
        turn_s=0.01 if name == "quick" else 0.02,
        limit_s=LIMIT_S[name] if options.limit is None else options.limit,
        memory=not options.no_memory,
        most_bytes=affordable_bytes(options.device),
    )


def _run_with_progress(
    cases: Sequence[AnyCase], settings: Settings, command: str, console: Console
) -> Run:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=len(cases) * len(settings.dtypes))
        begun = -1

        def on_case(label: str) -> None:
            nonlocal begun
            begun += 1
            progress.update(task, description=label, completed=begun)

        return run(cases, settings, command=command, on_case=on_case)


def _load(parser: argparse.ArgumentParser, path: Path | None) -> Run | None:
    if path is None:
        return None
    try:
        return load_json(path)
    except (OSError, ValueError) as error:
        parser.error(f"argument --compare: {error}")


def _choices(allowed: Sequence[str] | dict[str, torch.dtype]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(text.split(",")))
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(
                    f"{name!r} is none of {', '.join(allowed)} (several: joined by commas)"
                )
        return names

    return parse


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a regular expression: {error}"
        ) from error
    return text


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not found >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return found


def _device(text: str) -> str:
    if text == "cpu":
        return text
    if not re.fullmatch(r"cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither cpu nor cuda")
    if not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(f"{text!r}: torch finds no usable GPU")
    return text


def _directory(text: str) -> Path:
    if Path(text).exists() and not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a directory")
    return Path(text)
