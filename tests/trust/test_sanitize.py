"""Which reports of the sanitizers `make sanitize` lets pass."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RACE = """==================
WARNING: ThreadSanitizer: data race (pid=1)
  Write of size 8 at 0x7b44 by thread T22:
    #0 {write} <null> ({library}+0x7b65112)

  Previous write of size 8 at 0x7b44 by main thread:
    #0 c10::alloc_cpu(unsigned long) <null> (libc10.so+0x91f7e)

  Thread T22 (tid=2, running) created by main thread at:
    #0 parallel_for csrc/cpu/weighted_sum.cpp:78 (_C.cpython-311.so+0x1)

SUMMARY: ThreadSanitizer: data race
==================
"""
TORCHS_RACE = RACE.format(write="cpu_flash_attention", library="libtorch_cpu.so")
OWN_RACE = RACE.format(write="weighted_sum", library="_C.cpython-311.so")
LEAK = """=================================================================
==1==ERROR: LeakSanitizer: detected memory leaks

Direct leak of 48 byte(s) in 1 object(s) allocated from:
    #0 operator new(unsigned long) (libasan.so.8+0xb94c8)
    #1 {leaking}

SUMMARY: AddressSanitizer: 48 byte(s) leaked in 1 allocation(s).
"""
OVERFLOW = """=================================================================
==1==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x602 at pc 0x7f
READ of size 4 at 0x602 thread T0
    #0 memcpy (libasan.so.8+0x4d10e)
"""
DEADLOCK = """==================
WARNING: ThreadSanitizer: lock-order-inversion (potential deadlock) (pid=1)
  Cycle in lock order graph: M1 (0x7b10) => M2 (0x7b20) => M1

  Mutex M2 acquired here while holding mutex M1 in main thread:
    #0 pthread_mutex_lock (libtsan.so+0x1)
    #1 {holder}

SUMMARY: ThreadSanitizer: lock-order-inversion (potential deadlock)
==================
"""
DIES = "==1==ThreadSanitizer: starting new threads after multi-threaded fork is not supported.\n"


@pytest.fixture
def sanitize(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.delitem(sys.modules, "sanitize", raising=False)
    import sanitize

    return sanitize


@pytest.mark.parametrize(
    ("report", "count"),
    [
        (TORCHS_RACE + "ThreadSanitizer: reported 1 warnings\n", 0),
        (TORCHS_RACE + OWN_RACE + TORCHS_RACE + "ThreadSanitizer: reported 3 warnings\n", 1),
        (OWN_RACE + OWN_RACE, 2),
        (DEADLOCK.format(holder="mmfast::facts (_C.cpython-311.so+0x1)"), 1),
        (DEADLOCK.format(holder="c10::free (libc10.so+0x1)"), 0),
        (DIES, 1),
        (OVERFLOW, 1),
        (LEAK.format(leaking="THPVariable (libtorch_python.so+0x1)"), 0),
        (LEAK.format(leaking="mmfast::plan (/x/mmfast/_C.cpython-311.so+0x1)"), 1),
        (LEAK.format(leaking="PyInit__C (/x/mmfast/_C.cpython-311.so+0x1)"), 0),
    ],
)
def test_reports(sanitize, tmp_path, report, count):
    (tmp_path / "report.1").write_text(report)
    assert len(sanitize.reports(tmp_path)) == count
