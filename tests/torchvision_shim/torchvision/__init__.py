"""torchvision's Python half beside a build of torch that its library does not load with.

PyPI's torchvision is built for PyPI's torch, with CUDA. Beside the CPU build its library does not
load, and importing it fails at the fakes of two operators that the library would have defined. This
package stands before it on the path (see tests/torchvision_apart.py), declares the two schemas, and
becomes the torchvision behind it. It is a package and not code beside that file so that worker
processes, which inherit the path but import no conftest, find it as well.
"""

import importlib.machinery
import os
import sys

import torch

_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

_here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_rest = [folder for folder in sys.path if os.path.abspath(folder or ".") != _here]
_spec = importlib.machinery.PathFinder.find_spec("torchvision", _rest)
__path__ = list(_spec.submodule_search_locations)
__file__ = _spec.origin
_spec.loader.exec_module(sys.modules[__name__])
