"""The list of faults of `make mutants` keeps up with the code."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def mutants(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.delitem(sys.modules, "mutants", raising=False)
    import mutants

    return mutants


def test_every_fault_can_be_put_in(mutants):
    found = mutants.read_mutants()
    assert len(found) >= 40
    assert len({m.fault for m in found}) == len(found)
    assert [f"{m.fault}: {m.problem(ROOT)}" for m in found if m.problem(ROOT)] == []


def test_what_cannot_be_put_in_is_told(mutants):
    known = mutants.read_mutants()[0]
    gone = mutants.Mutant("x", "csrc/gone.cpp", "a", "b", known.tests)
    assert gone.problem(ROOT) == "csrc/gone.cpp is not there"
    often = mutants.Mutant("x", known.file, "args", "b", known.tests)
    assert "it must stand once" in often.problem(ROOT)
    untested = mutants.Mutant("x", known.file, known.find, "b", "tests/gone.py")
    assert untested.problem(ROOT) == "tests/gone.py is not there"
