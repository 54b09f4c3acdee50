"""Programs that run every operator among threads and processes: ``scenarios.py NAME``.

A program each, since what goes wrong here is a process that waits for ever or dies. It ends well if
all bits were those of a single thread; test_threads.py starts it.
"""

import faulthandler
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Sequence

import torch
from operator_calls import CALLS, OWN
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

THREADS = 8
ROUNDS = 2
Expected = dict[str, list[Tensor]]


def results(threads: int) -> Expected:
    """Of every call while nothing else runs."""
    torch.set_num_threads(threads)
    return {name: call() for name, call in CALLS.items()}


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(-1).view(torch.uint8)


def check(name: str, expected: Expected, found: Sequence[Tensor] | None = None) -> None:
    """Raise unless a call's bits are the expected ones."""
    found = CALLS[name]() if found is None else found
    for number, (x, y) in enumerate(zip(found, expected[name], strict=True)):
        if not torch.equal(bits(x), bits(y)):
            raise AssertionError(f"{name}: tensor {number} has other bits")


def at_once(work: Callable[[int], None]) -> None:
    """Run ``work(number)`` in THREADS threads that begin together; raise what one raised."""
    start = threading.Barrier(THREADS)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        start.wait()
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def shuffled(names: Sequence[str], seed: int) -> list[str]:
    return random.Random(seed).sample(names, len(names))


def python_threads() -> None:
    """All operators from all threads, each in an order of its own, on the same tensors."""
    expected = results(threads=2)

    def work(number: int) -> None:
        for round_ in range(ROUNDS):
            for name in shuffled(list(CALLS), number + 100 * round_):
                check(name, expected)

    at_once(work)


def changing_threads() -> None:
    """torch.set_num_threads before every call, in one thread and in all of them."""
    expected = results(threads=1)

    def work(number: int) -> None:
        for round_ in range(ROUNDS):
            for name in shuffled(OWN, number + 100 * round_):
                torch.set_num_threads(random.Random(name).randrange(1, 5))
                check(name, expected)

    for threads in (2, 3, 8, 1):
        torch.set_num_threads(threads)
        for name in OWN:
            check(name, expected)
    at_once(work)


class Deeper(torch.autograd.Function):
    """Its backward runs a backward, and so on; autograd runs deep ones in threads of its own."""

    @staticmethod
    def forward(ctx, x, depth, bottom):
        ctx.depth, ctx.bottom = depth, bottom
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        if ctx.depth == 0:
            ctx.bottom()
        else:
            with torch.enable_grad():
                x = torch.zeros(1, requires_grad=True)
                Deeper.apply(x, ctx.depth - 1, ctx.bottom).sum().backward()
        return grad, None, None


def autograd_threads() -> None:
    """Backward in threads that autograd made, and through one graph from all threads."""
    expected = results(threads=2)
    at_bottom: list[int] = []

    def bottom() -> None:
        at_bottom.append(threading.get_native_id())
        with torch.enable_grad():
            for name in CALLS:
                check(name, expected)

    def work(number: int) -> None:
        Deeper.apply(torch.zeros(1, requires_grad=True), 70, bottom).sum().backward()
        if number % 2 == 0:
            bottom()

    work(1)
    assert at_bottom[0] != threading.get_native_id(), "this depth no longer needs another thread"
    at_once(work)


def fork() -> None:
    """Children of a process whose threads have worked, from its main thread and from another."""
    expected = results(threads=2)
    done = 17  # not 0, with which something else may end a child

    def child() -> int:
        try:
            for name in CALLS:
                check(name, expected)
            return done
        except BaseException as error:
            print(error, flush=True)
            return 1

    def generations(count: int) -> int:
        """The status of a child, which has a child itself."""
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)  # ends it; faulthandler's watch did not come along
            status = child()
            os._exit(generations(count - 1) if status == done and count > 1 else status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    statuses = [generations(2)]
    for name in CALLS:
        check(name, expected)  # the parent has its threads again
    thread = threading.Thread(target=lambda: (child(), statuses.append(generations(1))))
    thread.start()
    thread.join()
    assert statuses == [done, done], f"exit statuses of children: {statuses}"


class Calls(Dataset):
    """Item i: the results of call i."""

    def __len__(self) -> int:
        return len(CALLS)

    def __getitem__(self, i: int) -> tuple[str, list[Tensor]]:
        name = list(CALLS)[i]
        return name, CALLS[name]()


def in_workers(context: str) -> None:
    """In the workers of a DataLoader, of one thread each; twice, while the parent works too."""
    results(threads=2)
    expected = results(threads=1)
    torch.set_num_threads(2)
    for _ in range(2):
        loader = DataLoader(
            Calls(), batch_size=None, num_workers=2, multiprocessing_context=context
        )
        names = []
        for name, found in loader:
            check(name, expected, found)
            CALLS[name]()
            names.append(name)
        assert names == list(CALLS)


SCENARIOS: dict[str, Callable[[], None]] = {
    "python_threads": python_threads,
    "changing_threads": changing_threads,
    "autograd_threads": autograd_threads,
    "fork": fork,
    "forked_workers": lambda: in_workers("fork"),
    "spawned_workers": lambda: in_workers("spawn"),
}

if __name__ == "__main__":
    faulthandler.dump_traceback_later(float(sys.argv[2]), exit=True)
    SCENARIOS[sys.argv[1]]()
    print(f"{sys.argv[1]}: {len(CALLS)} calls")
