"""What happens to one rank ends all of them: soon, with its reason, and so that the run resumes."""

import os
import signal
import time

import pytest
from pipeline import write_config
from ranks import last, wait_for

ENDLESS = ("train.epochs=100000", "run.checkpoint_steps=1", "train.batch_size=4")


def resumes(ranks, folder):
    """The run goes on from where it was."""
    before = last(folder / "run").state["progress"]["step"]
    # It stops at once: the listener of the command is told to, by the first step.
    code = (
        "import os, signal, mmfast.train.console as c\n"
        "c.Console.on_step = lambda *a: os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    ranks.start(2, folder, *command(folder), "--resume", "auto", code=code)
    assert ranks.wait().status == [143, 143]
    assert last(folder / "run").state["progress"]["step"] == before + 1


def command(folder, *overrides):
    return "train", folder / "config.yaml", "--no-report", *ENDLESS, *overrides


def begin(ranks, folder, *overrides, code=""):
    """Two ranks that train, and have saved already."""
    write_config(folder)
    pids = ranks.start(2, folder, *command(folder, *overrides), code=code)
    wait_for(folder / "run" / "last")
    return pids


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_is_killed(ranks, tmp_path, victim):
    pids = begin(ranks, tmp_path)
    os.kill(pids[victim], signal.SIGKILL)
    ended = ranks.wait()
    assert ended.status[victim] == -signal.SIGKILL
    assert ended.status[1 - victim] == 1
    said = ended.err[1 - victim]
    assert f"mmfast train: rank {1 - victim} of 2 lost the others: one of them was killed" in said
    assert "--resume auto" in said
    assert "Traceback" not in said
    if victim == 1:
        resumes(ranks, tmp_path)


def test_a_rank_hangs(ranks, tmp_path):
    pids = begin(ranks, tmp_path, "train.timeout=2")
    os.kill(pids[1], signal.SIGSTOP)
    end = time.monotonic() + 100
    while "lost the others" not in (tmp_path / "err-0").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(pids[1], signal.SIGKILL)
    assert ranks.wait().status == [1, -signal.SIGKILL]
    assert "did not answer within train.timeout" in (tmp_path / "err-0").read_text()


def test_a_rank_is_told_to_stop(ranks, tmp_path):
    """Both save and end, also where the signal comes twice, by a scheduler and by torchrun."""
    pids = begin(ranks, tmp_path)
    os.kill(pids[1], signal.SIGINT)
    os.kill(pids[1], signal.SIGTERM)
    ended = ranks.wait()
    assert ended.status == [130, 130]
    step = last(tmp_path / "run").state["progress"]["step"]
    assert f"--resume auto goes on from step {step}" in ended.out[0]
    assert ended.out[1] == ""


FAIL_AT = """
import itertools
if rank == 1:
    {imports}
    calls, former = itertools.count(), {what}
    def fail(*arguments, **named):
        if next(calls) == {at}:
            {how}
        return former(*arguments, **named)
    {what} = fail
"""
UNREADABLE = FAIL_AT.format(
    imports="import mmfast.data.dataset as module, mmfast.data as data",
    what="module.read_cell",
    at=60,
    how="raise data.CellError('the disk is gone', row=7, column='vector', where='line 7')",
)
NOT_A_NUMBER = FAIL_AT.format(
    imports="import mmfast.train.tasks as module",
    what="module.Task.loss",
    at=7,
    how="return former(*arguments, **named) * float('nan')",
)
UNPREPARED = FAIL_AT.format(
    imports="import mmfast.train.run as module",
    what="module.build_model",
    at=0,
    how="raise ValueError('no such file here')",
)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (UNREADABLE, "the disk is gone"),
        (NOT_A_NUMBER, "the loss became nan at step"),
        (UNPREPARED, "no such file here"),
    ],
    ids=["reading", "loss", "preparation"],
)
def test_an_error_of_one_rank(ranks, tmp_path, code, reason):
    """Each says which rank it was and why; nobody hangs."""
    write_config(tmp_path)
    ranks.start(2, tmp_path, *command(tmp_path), code=code)
    ended = ranks.wait()
    assert ended.status == [1, 1]
    assert reason in ended.err[1]
    assert "mmfast train: rank 1 failed, and ends this one: " in ended.err[0]
    assert reason in ended.err[0]
    assert "Traceback" not in ended.err[0] + ended.err[1]


def test_the_first_rank_cannot_write(ranks, tmp_path):
    code = UNPREPARED.replace("rank == 1", "rank == 0").replace("train.run", "train.engine")
    code = code.replace("build_model", "save_checkpoint").replace("ValueError", "OSError")
    write_config(tmp_path)
    ranks.start(2, tmp_path, *command(tmp_path), code=code)
    ended = ranks.wait()
    assert ended.status == [1, 1]
    assert "rank 0 failed, and ends this one: no such file here" in ended.err[1]


def test_a_parameter_that_nothing_uses(ranks, tmp_path):
    """DDP would wait for its gradient."""
    write_config(tmp_path)
    code = (
        "import torch, mmfast.train.multimodal as m\n"
        "init = m.MultimodalModel.__init__\n"
        "def with_spare(self, *a, **k):\n"
        "    init(self, *a, **k)\n"
        "    self.spare = torch.nn.Parameter(torch.ones(3))\n"
        "m.MultimodalModel.__init__ = with_spare\n"
    )
    ranks.start(2, tmp_path, *command(tmp_path), code=code)
    ended = ranks.wait()
    assert ended.status == [1, 1]
    assert "mmfast train: model.spare got no gradient; on several ranks" in ended.err[0]


def test_a_rank_that_never_comes(ranks, tmp_path):
    write_config(tmp_path)
    code = "if rank == 1: raise SystemExit(3)"
    ranks.start(2, tmp_path, *command(tmp_path, "train.timeout=2"), code=code)
    ended = ranks.wait()
    assert ended.status[0] == 1
    assert (
        "the 2 ranks that were launched did not find each other within train.timeout"
        in (ended.err[0])
    )


def test_ranks_that_are_not_alike(ranks, tmp_path):
    """Other settings, another folder, other rows: told, where all would train apart."""
    write_config(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "table.jsonl").write_text((tmp_path / "table.jsonl").read_text()[:-1] + "\n")
    cases = {
        "started with different configurations: train.lr was 0.01 and is 0.5": (
            "import mmfast.train.commands.train as t\n"
            "load = t.load_config\n"
            "t.load_config = lambda p, o: load(p, [*o, f'train.lr={(0.01, 0.5)[rank]}'])\n"
        ),
        "is not the folder that rank 0 trains in": (
            f"import os; os.chdir(({str(tmp_path)!r}, {str(other)!r})[rank])\n"
            "import mmfast.train.commands.train as t\n"
            "load = t.load_config\n"
            "t.load_config = lambda p, o: load(p, [*o, 'run.dir=here'])\n"
        ),
        "found different rows": (
            "import mmfast.train.run as r\n"
            "divide = r.divide\n"
            "def fewer(*a):\n"
            "    split = divide(*a)\n"
            "    return split._replace(train=split.train[rank:])\n"
            "r.divide = fewer\n"
        ),
    }
    for message, code in cases.items():
        ranks.start(2, tmp_path, *command(tmp_path), code=code)
        ended = ranks.wait()
        assert ended.status == [1, 1]
        assert message in ended.err[0]
        assert message in ended.err[1]
