"""Operators among threads and processes: the bits of one thread, and no process that hangs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmfast.ops.library import host

HERE = Path(__file__).parent
# Far beyond what a scenario takes: what is not done by then waits for ever.
LIMIT_S = 900 if "-fsanitize" in host.build_info()["flags"] else 300

SCENARIOS = [
    "python_threads",
    "changing_threads",
    "autograd_threads",
    "fork",
    "forked_workers",
    "spawned_workers",
]


@pytest.mark.parametrize("name", SCENARIOS)
def test_threads(name):
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(HERE / "scenarios.py"), name, str(LIMIT_S)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=LIMIT_S + 60,
    )
    output = f"{done.stdout}{done.stderr}"
    assert done.returncode == 0, f"{name} ended with {done.returncode}:\n{output}"
    assert done.stdout.startswith(f"{name}: "), output
