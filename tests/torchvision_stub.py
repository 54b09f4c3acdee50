"""Lets libraries be imported that import torchvision and, in what the tests use, never call it.

PyPI's torchvision does not load beside a CPU build of torch. The stub stands there only while the
library is imported: nothing that looks for torchvision later may find it.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any


class _Anything(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Stub(types.ModuleType):
    __version__ = "0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def import_without_torchvision(name: str) -> Any:
    """The module ``name``, whose imports of torchvision get a stub if there is none that loads."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if "torchvision" not in str(error):
            raise
    finder = _Finder()
    sys.meta_path.append(finder)
    try:
        return importlib.import_module(name)
    finally:
        sys.meta_path.remove(finder)
        for loaded in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
            del sys.modules[loaded]
