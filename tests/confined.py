"""Runs an attack in a process of its own, where memory and time are short.

The process is a fork, so that a test costs milliseconds and not an import of torch.
"""

import os
import pickle
import resource
import signal
from pathlib import Path
from typing import NamedTuple

import torch


class Outcome(NamedTuple):
    """How a function ended.

    Attributes:
        error: the name of the type that it raised, empty if it returned.
        message: of the error, or the ``str`` of what it returned.
        grown: by how many bytes its resident memory exceeded what it began with, at most.
    """

    error: str
    message: str
    grown: int


def confined(function, *arguments, memory=1 << 30, seconds=15) -> Outcome:
    """Call ``function(*arguments)`` where it can map ``memory`` more bytes than now.

    A process that dies, of a signal or of its time, is an AssertionError. Seconds are those of the
    processor, so that a busy machine changes nothing; one that only waits is ended in the end.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _attempt(writer, function, arguments, memory, seconds)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the process ended with status {os.waitstatus_to_exitcode(status)}"
    return Outcome(*pickle.loads(said))


def _attempt(writer, function, arguments, memory, seconds):
    torch.set_num_threads(1)  # the threads of the parent are not here
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(40 * seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = _status("VmRSS")
    limit = _status("VmSize") + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        error, message = "", str(function(*arguments))
    except BaseException as caught:
        error, message = type(caught).__name__, str(caught)
    grown = _status("VmHWM") - before
    os.write(writer, pickle.dumps((error, message[:2000], grown)))
    os._exit(0)


def _status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))
