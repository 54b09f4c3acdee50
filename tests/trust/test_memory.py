"""No operator keeps memory: a short run of memory.py, whose long one is in ``make sanitize``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmfast.ops.library import host

HERE = Path(__file__).parent
SANITIZED = "-fsanitize" in host.build_info()["flags"]


@pytest.mark.skipif(SANITIZED, reason="a sanitizer has a heap of its own, which it watches itself")
@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc's heap")
def test_memory_is_flat():
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(HERE / "memory.py"), "200"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert done.stdout.endswith("leaking: none\n"), done.stdout
