"""A few hundred random calls, always the same ones; ``make fuzz`` makes thousands of new ones."""

import json
import re

import pytest
import torch

import mmfast
from fuzz import bad, runner, sizes, targets
from fuzz.__main__ import reproduce
from fuzz.formulas import FORMULAS
from fuzz.pool import Pool
from mmfast.nn.registry import list_fusions

pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")

CASES = 15  # per target, times its share
BAD_CASES = 5


def test_every_fusion_has_a_formula():
    assert set(list_fusions()) == set(FORMULAS)


@pytest.mark.parametrize("name", targets.TARGETS)
def test_right_calls(name):
    pool = Pool()
    count = max(4, round(CASES * targets.TARGETS[name].share))
    runner.sweep(targets.cases(name), lambda case: targets.run(case, pool), count)
    assert pool.exact or pool.squares


def test_wrong_calls():
    """In a process of their own: none may end it."""
    found = list(runner.outcomes(["--derandomize"], [(name, BAD_CASES) for name in bad.NAMES]))
    assert [x["name"] for x in found] == bad.NAMES
    assert [x["found"] for x in found if x["found"]] == []
    assert sum(x["exact"] for x in found) > len(bad.NAMES)  # calls that were tried


@pytest.mark.parametrize(
    "check", [sizes.far_strides, sizes.many_inputs], ids=lambda check: check.__name__
)
def test_sizes(check):
    check()


# ------------------------------------------------------------------------ the fuzzer finds what is


def test_a_fault_is_found_and_told_in_one_line(monkeypatch, capsys):
    """A result that leaves out one product, of the last feature of all."""

    def wrong(inputs, weight, *rest, **options):
        weight = torch.cat([weight[:, :-1], torch.zeros_like(weight[:, -1:])], 1)
        return original(inputs, weight, *rest, **options)

    original = mmfast.concat_linear
    monkeypatch.setattr(mmfast, "concat_linear", wrong)
    with pytest.raises(runner.Found) as info:
        runner.sweep(targets.cases("concat_linear"), lambda case: targets.run(case, Pool()), 60)
    [text] = re.findall(r"--reproduce '(.*)'$", str(info.value), re.MULTILINE)
    case = json.loads(text)
    assert reproduce(case) == 1
    assert re.match(r"concat_linear: .*(integers are wrong|error)", capsys.readouterr().out)
    monkeypatch.undo()
    assert reproduce(case) == 0
    assert capsys.readouterr().out == "concat_linear: as it should be\n"


def test_a_crash_and_silence_are_found(monkeypatch):
    monkeypatch.setattr(runner, "SILENCE", 4)
    first, second, third = runner.outcomes([], [("crash", 5), ("hang", 5), ("crash", 5)])
    line = r"\n  PYTHONPATH=.* -m fuzz --reproduce '{\"target\":\"%s\",\"seed\":3}'"
    assert re.match(r"ends the process \(-11\)" + line % "crash", first["found"])
    assert re.match("hangs" + line % "hang", second["found"])
    assert third == first
