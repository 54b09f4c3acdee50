"""Measures cases: builds the data, checks the peers, times them in turns, looks at memory."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

import mmfast
from mmfast.bench import cuda_timing, memory, peers
from mmfast.bench.cases import Case
from mmfast.bench.data import Data, make_data
from mmfast.bench.operator_cases import OperatorCase, OperatorData, make_operator_data
from mmfast.bench.peers import Contender
from mmfast.bench.records import Measurement, Result, Run
from mmfast.bench.timing import Prepared, Step, interleave
from mmfast.ops.library import host

MODES = ("forward", "backward", "both")
AnyCase = Case | OperatorCase
AnyData = Data | OperatorData
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        modes: of :data:`MODES`.
        dtypes: names of :data:`DTYPES`.
        threads: of torch, where a case does not say otherwise.
        device: ``cpu`` or a CUDA device.
        compile: groups of cases in which ``torch.compile`` takes part.
        turns: rounds of a measurement, if time allows.
        turn_s: least length of one peer's turn in seconds.
        limit_s: a measurement stops after the round in which this is reached, ...
        least_turns: ... but not before so many rounds.
        memory: whether to look at memory too.
        most_bytes: a case that needs more is skipped.
    """

    modes: tuple[str, ...] = ("forward", "both")
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    threads: int = 1
    device: str = "cpu"
    compile: tuple[str, ...] = ("real", "tiny")
    turns: int = 11
    turn_s: float = 0.02
    limit_s: float = 2.0
    least_turns: int = 3
    memory: bool = True
    most_bytes: int = 4 << 30


def run(
    cases: Sequence[AnyCase],
    settings: Settings,
    *,
    command: str = "",
    on_case: Callable[[str], None] = lambda label: None,
) -> Run:
    """Measures every case in every dtype and mode.

    Args:
        cases: what to measure.
        settings: how.
        command: what the user asked for, to be recorded.
        on_case: called with a label before each case and dtype.
    """
    begin, date = perf_counter(), datetime.now().astimezone().isoformat(timespec="seconds")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    measurements: list[Measurement] = []
    skipped: dict[str, str] = {}
    for case in cases:
        for dtype in settings.dtypes:
            on_case(f"{case.name}, {dtype}")
            modes = _affordable(case, dtype, settings, skipped)
            with torch_threads(case.threads or settings.threads):
                measurements += measure(case, dtype, replace(settings, modes=modes))
    return Run(
        machine=machine(settings),
        versions={
            "mmfast": mmfast.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        date=date,
        command=command,
        measurements=measurements,
        skipped=skipped,
        load=round(load, 2),
        elapsed_s=round(perf_counter() - begin, 1),
    )


def measure(case: AnyCase, dtype: str, settings: Settings) -> list[Measurement]:
    """One case and dtype in the modes of ``settings``, with torch's threads as they are."""
    if not settings.modes:
        return []
    data = any_data(case, DTYPES[dtype], settings.device)
    contenders, refused = _agreeing(data, settings)
    found = []
    for mode in settings.modes:
        with torch.set_grad_enabled(mode != "forward"):
            results = _measure_mode(data, contenders, mode, settings)
        found.append(
            Measurement(
                case=case.name,
                group=case.group,
                kind=case.kind,
                series=case.series,
                size=case.size,
                axis=case.axis,
                activation=case.activation,
                shape=case.describe(),
                rows=case.rows,
                width=case.width,
                out_features=case.out_features,
                dtype=dtype,
                mode=mode,
                threads=torch.get_num_threads(),
                moved_bytes=case.moved_bytes(data.grad.itemsize, mode),
                flops=case.flops(mode),
                result_bytes=data.grad.nbytes,
                peers=results,
                refused=refused,
                operator=case.operator,
            )
        )
    return found


def any_data(case: AnyCase, dtype: torch.dtype, device: str = "cpu") -> AnyData:
    """The tensors of a case of any operator."""
    if isinstance(case, Case):
        return make_data(case, dtype, device)
    return make_operator_data(case, dtype, device)


def _agreeing(data: AnyData, settings: Settings) -> tuple[dict[str, Contender], dict[str, str]]:
    """Contenders whose results are eager's, and of the others why they take no part."""
    case, gradients = data.case, settings.modes != ("forward",)
    expected = peers.results(peers.bind("eager", data), data, gradients=gradients)
    contenders: dict[str, Contender] = {}
    refused: dict[str, str] = {}
    compile = case.group in settings.compile
    if compile:
        torch._dynamo.reset()
    for name in (*case.ceilings, *peers.available(case, settings.device, compile=compile)):
        try:
            contender = peers.bind(name, data)
            if "forward" in settings.modes:
                found = peers.results(contender, data, gradients=False)
                peers.check(name, found, expected[:1], data.grad.dtype)
            if gradients:
                found = peers.results(contender, data, gradients=True)
                peers.check(name, found, expected, data.grad.dtype)
        except Exception as error:  # whatever it is: the others can still be measured
            first_line = (str(error).splitlines() or [""])[0]
            refused[name] = f"{type(error).__name__}: {first_line}"
        else:
            contenders[name] = contender
    return contenders, refused


def _measure_mode(
    data: AnyData, contenders: dict[str, Contender], mode: str, settings: Settings
) -> dict[str, Result]:
    steps = {"copy": copy_step(data, mode)}
    steps |= {name: step(contender, data.grad, mode) for name, contender in contenders.items()}
    measured = (
        partial(cuda_timing.interleave, device=settings.device)
        if settings.device.startswith("cuda")
        else interleave
    )
    times = measured(
        *steps.values(),
        turns=settings.turns,
        turn_s=settings.turn_s,
        limit_s=settings.limit_s,
        least_turns=settings.least_turns,
    )
    results = {}
    for name, seconds in zip(steps, times, strict=True):
        results[name] = Result(seconds)
        if settings.memory and name != "copy":
            peak = memory.peak_bytes(steps[name], settings.device)
            results[name] = Result(seconds, peak)
            if mode != "forward":
                kept = memory.kept_bytes(contenders[name].forward, data.given)
                results[name] = Result(seconds, peak, kept.total, kept.extra)
    return results


def step(contender: Contender, grad: Tensor, mode: str) -> Step:
    """What is timed of a contender; autograd is to be off for ``forward``, on for the others."""
    forward, leaves = contender.forward, contender.leaves
    # autograd.grad and not .backward(): adding to .grad would cost all peers the same and hide a
    # part of the difference.
    if mode == "forward":
        return forward
    if mode == "both":
        return lambda: torch.autograd.grad(forward(), leaves, grad)
    return Prepared(forward, lambda result: torch.autograd.grad(result, leaves, grad))


def copy_step(data: AnyData, mode: str) -> Step:
    """Copies half as many bytes as ``mode`` must move, so that it moves as many.

    The copies are new tensors, as many as ``mode`` returns and in proportion: memory that is new to
    the process costs its first write several times as much, to a copy as to an operator.
    """
    case, size = data.case, data.grad.itemsize
    elements = case.moved_bytes(size, mode) // (2 * size)
    written = case.written(mode)
    shares = [max(1, elements * count // sum(written)) for count in written]
    sources = [data.grad.new_ones(share) for share in shares]
    return lambda: [source.clone() for source in sources]


def _affordable(
    case: AnyCase, dtype: str, settings: Settings, skipped: dict[str, str]
) -> tuple[str, ...]:
    modes = []
    for mode in settings.modes:
        needed = case.needed_bytes(DTYPES[dtype].itemsize, mode)
        if needed <= settings.most_bytes:
            modes.append(mode)
        else:
            skipped[f"{case.name}, {dtype}, {mode}"] = (
                f"needs about {needed / 2**30:.1f} GiB, {settings.most_bytes / 2**30:.1f} GiB are "
                "allowed"
            )
    return tuple(modes)


def affordable_bytes(device: str) -> int:
    """A quarter of the memory of the machine or device."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory // 4
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    return 2 << 30


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Runs torch's operators on ``count`` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine(settings: Settings) -> dict[str, str | int]:
    """What a run is told apart by, besides the versions."""
    cuda = settings.device.startswith("cuda")
    return {
        "processor": _processor(),
        "cores": cores(),
        "threads": settings.threads,
        "isa": host.cpu_isa(),
        "device": torch.cuda.get_device_name(settings.device) if cuda else "cpu",
    }


def _processor() -> str:
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = (line.split(":", 1)[1].strip() for line in lines if "model name" in line)
            return next(names, platform.machine())
    return platform.processor() or platform.machine()
