"""Cases that end the process or never end: what the runner must survive and tell."""

import os
import signal
import time

from hypothesis import strategies as st

NAMES = ("crash", "hang")


def cases(name):
    return st.fixed_dictionaries({"target": st.just(name), "seed": st.just(3)})


def run(case, pool):
    if case["target"] == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(3600)
