"""Runs cases by the thousand: in a process of its own, whose death or silence is a finding too."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.errors import Flaky

Case = dict[str, Any]

TESTS = Path(__file__).resolve().parents[1]
SILENCE = 120  # seconds without a new case after which a run counts as hanging
MEMORY = 3 * 2**30  # bytes that a child may address beyond what torch does: see `limited`


class Found(AssertionError):
    """What was found, and the line that shows it again."""


def line(case: Case) -> str:
    """A line for the shell that runs the case again."""
    text = json.dumps(case, separators=(",", ":"))
    return f"PYTHONPATH={os.path.relpath(TESTS)} {sys.executable} -m fuzz --reproduce '{text}'"


def sweep(
    cases: st.SearchStrategy[Case],
    run: Callable[[Case], None],
    count: int,
    seed: int | None = None,
    progress: Path | None = None,
) -> None:
    """Run ``count`` cases; raise Found for the smallest that fails. Without a seed, the same ones.

    ``progress`` is a file that holds the case at work, for whoever outlives a crash.
    """

    last: list[Found] = []

    def attempt(case: Case) -> None:
        if progress is not None:
            progress.write_text(json.dumps(case))
        try:
            run(case)
        except Exception as error:
            last[:] = [Found(f"{type(error).__name__}: {error}\n  {line(case)}")]
            raise last[0] from error

    options = settings(
        max_examples=count,
        database=None,
        deadline=None,
        derandomize=seed is None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    test = options(given(cases)(attempt))
    if seed is not None:
        test = seeded(seed)(test)
    try:
        test()
    except Flaky as error:  # other bits every time is a finding like any other
        raise last[0] from error


def limited() -> None:
    """Let allocations fail that this machine would grant but could not keep."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def outcomes(arguments: list[str], jobs: list[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """Run jobs (a name, a count) in a child, and in another where that one ends before its time.

    The child is ``python -m fuzz --child``, which takes the jobs from its input and writes a line
    of JSON for each that is done.
    """
    todo = list(jobs)
    while todo:
        with tempfile.TemporaryDirectory() as folder:
            progress = Path(folder, "case.json")
            command = [sys.executable, "-X", "faulthandler", "-m", "fuzz", "--child", str(progress)]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
            child = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
            assert child.stdin is not None
            child.stdin.write(json.dumps(todo))
            child.stdin.close()
            watcher = _Watcher(child, progress)
            assert child.stdout is not None
            for text in child.stdout:
                yield json.loads(text)
                todo.pop(0)
            errors = child.stderr.read() if child.stderr else ""
            code = child.wait()
            watcher.stop()
            if code == 0:
                return
            name, _ = todo.pop(0)
            how = "hangs" if watcher.fired else f"ends the process ({code})"
            case = json.loads(progress.read_text()) if progress.exists() else None
            shown = f"{how}\n  {line(case)}" if case else f"{how}\n{errors[-2000:]}"
            yield {"name": name, "found": shown, "stderr": errors[-2000:]}


class _Watcher:
    """Ends a child that has begun no case for SILENCE seconds."""

    def __init__(self, child: subprocess.Popen, progress: Path) -> None:
        self.fired = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(child, progress), daemon=True)
        self._thread.start()

    def _watch(self, child: subprocess.Popen, progress: Path) -> None:
        while not self._done.wait(1):
            if progress.exists() and time.time() - progress.stat().st_mtime > SILENCE:
                self.fired = True
                child.kill()
                return

    def stop(self) -> None:
        self._done.set()
        self._thread.join()
