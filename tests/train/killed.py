"""Trains in a child that is killed again and again, until it ends; run as a script.

    python killed.py CONFIG KILLS SEED [KEY=VALUE ...]

prints how many of the kills met the child at work. A child of a process that has everything
imported starts in milliseconds, so that kills fall on training and not on imports.
"""

import os
import random
import signal
import sys
import time

import torch

from mmfast.train.config import load_config
from mmfast.train.run import fit

torch.set_num_threads(1)


def train(config):
    child = os.fork()
    if child == 0:
        try:
            fit(config, resume=True)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child


def main(path, kills, seed, *overrides):
    config = load_config(path, overrides)
    random.seed(seed)
    started = time.monotonic()
    reference = config.model_copy(
        update={"run": config.run.model_copy(update={"dir": config.run.dir + "-whole"})}
    )
    assert os.waitstatus_to_exitcode(os.waitpid(train(reference), 0)[1]) == 0
    whole = time.monotonic() - started
    met = 0
    for _ in range(int(kills)):
        child = train(config)
        time.sleep(random.uniform(0.05, 0.6 * whole))
        os.kill(child, signal.SIGKILL)
        met += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert os.waitstatus_to_exitcode(os.waitpid(train(config), 0)[1]) == 0
    print(met)


if __name__ == "__main__":
    main(*sys.argv[1:])
