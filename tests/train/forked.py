"""Ranks that start in milliseconds: forked from a process that has everything imported.

`Ranks` in tests/ranks.py starts this script and sends it lines of JSON: a launch (how many ranks,
the arguments of ``mmfast``, the folder for what they print, code that each runs first, to which
``rank`` is known), answered by the processes' ids; or ids, answered by their statuses once they
have ended.
"""

import atexit
import json
import os
import socket
import sys
import traceback
from pathlib import Path

import torch
import torch._dynamo  # which fully_shard wants

# What is imported here need not be by each rank.
import mmfast.encoders.features
import mmfast.encoders.text
import mmfast.train.commands.crossval
import mmfast.train.commands.train  # noqa: F401
from mmfast.cli import main

torch.set_num_threads(1)


def start(launch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [os.fork() or run(launch, rank, port) for rank in range(launch["ranks"])]


def run(launch, rank, port):
    for number, name in ((1, "out"), (2, "err")):
        path = Path(launch["folder"]) / f"{name}-{rank}"
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    world = {"WORLD_SIZE": launch["ranks"], "LOCAL_WORLD_SIZE": launch["ranks"]}
    world |= {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    os.environ.update({name: str(value) for name, value in world.items()}, MASTER_ADDR="127.0.0.1")
    status = 70
    try:
        exec(launch["code"], {"rank": rank})
        status = main(launch["arguments"])
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if isinstance(asked, list):
            answer = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in asked]
        else:
            answer = start(asked)
        print(json.dumps(answer), flush=True)
