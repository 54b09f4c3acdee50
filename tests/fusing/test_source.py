"""Methods from trees: only what runs is read, and what comes out is the same method."""

import functools
import inspect
import sys
import textwrap

import pytest
import torch
from fusing_checks import is_fused
from fusing_models import Base
from torch import nn

import mmfast
from mmfast.fusing import source

INPUTS = Base.inputs()
FACTOR = 2.0


def check(model, fused=1):
    expected = model(*INPUTS)
    report = mmfast.fuse(model)
    assert len(report.fused) == fused, str(report)
    torch.testing.assert_close(model(*INPUTS), expected)
    assert is_fused(model, *INPUTS) == fused
    return report


def test_super_private_names_closures_defaults_and_globals(monkeypatch):
    offset = 3.0

    class Mixed(Base):
        def __init__(self):
            super().__init__()
            self.__hidden = 2.0

        def forward(self, x, y, scale=0.5, *, shift=1.0):
            if super().extra_repr() != "":
                raise AssertionError
            out = self.fc(torch.cat([x, y], dim=-1))
            return out * self.__hidden * scale * FACTOR + shift + offset

    model = Mixed()
    check(model)
    forward = model.forward.__func__
    assert inspect.signature(forward) == inspect.signature(Mixed.forward)
    assert forward.__globals__ is globals()
    before = model(*INPUTS)
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 0.0, raising=True)
    assert not torch.allclose(model(*INPUTS), before)
    offset = 5.0
    torch.testing.assert_close(model(*INPUTS), torch.full((192, 128), 6.0))


def test_decorators_stay():
    calls = []

    def counted(function):
        @functools.wraps(function)
        def wrapper(self, *args):
            calls.append(type(self))
            return function(self, *args)

        return wrapper

    class Decorated(Base):
        @counted
        @torch.no_grad()
        def forward(self, x, y):
            return self.fc(torch.cat([x, y], dim=-1))

    model = Decorated()
    check(model)
    assert calls
    assert not model(*INPUTS).requires_grad


def test_decorator_that_hides_the_function():
    class Holder:
        def __init__(self, function):
            self.function = function

    def held(function):
        holder = Holder(function)

        @functools.wraps(function)
        def wrapper(self, *args):
            return holder.function(self, *args)

        return wrapper

    class Decorated(Base):
        @held
        def forward(self, x, y):
            return self.fc(torch.cat([x, y], dim=-1))

    report = mmfast.fuse(Decorated())
    assert "a decorator stands around it" in report.skipped[0].reason


def module_from(path, text):
    path.write_text(textwrap.dedent(text))
    namespace = {"__name__": "written"}
    exec(compile(path.read_text(), str(path), "exec"), namespace)
    return namespace["Model"]


TEXT = """
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(256, 128)

        def forward(self, x, y):
            return self.fc(torch.cat([x, y], dim=-1)) * 2
"""


def test_a_file_that_changed_is_not_believed(tmp_path):
    cls = module_from(tmp_path / "written.py", TEXT)
    (tmp_path / "written.py").write_text(textwrap.dedent(TEXT).replace("* 2", "* 3"))
    report = mmfast.fuse(cls())
    assert report.fused == []
    assert "is not what was loaded" in report.skipped[0].reason


def test_a_file_that_is_gone(tmp_path):
    cls = module_from(tmp_path / "written.py", TEXT)
    (tmp_path / "written.py").unlink()
    report = mmfast.fuse(cls())
    assert "its source is not in" in report.skipped[0].reason


def test_a_subclass_runs_its_own_method():
    class Parent(Base):
        def forward(self, x, y):
            return self.fc(torch.cat([x, y], dim=-1))

    class Inherits(Parent):
        pass

    class Overrides(Parent):
        def forward(self, x, y):
            return super().forward(x, y) + 1

    check(Inherits())
    model = Overrides()
    assert mmfast.fuse(model).fused == []
    torch.testing.assert_close(model(*INPUTS), Parent.forward(model, *INPUTS) + 1)


@pytest.mark.parametrize(
    "cls", [nn.Linear, nn.Sequential, nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.LSTM]
)
def test_compiling_again_gives_the_same_code(cls):
    function = cls.forward
    again = source.exchanged(function, {})
    assert again is not function
    assert again.__code__.co_code == function.__code__.co_code
    assert again.__code__.co_firstlineno == function.__code__.co_firstlineno
