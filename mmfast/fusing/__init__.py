"""Makes models that exist faster without touching their source; :func:`mmfast.fuse` is the face.

The package is not called ``fuse``: importing ``mmfast.fuse`` would then put the package where the
function is expected.

How it works, and why not otherwise. A concatenation can be caught by a ``TorchFunctionMode`` around
``forward``, by a tensor subclass that puts it off, by tracing, or in the source. A mode costs
0.8 microseconds for *every* operator below it (measured; the overhead must be none), a tensor that
is not there yet cannot know that one of its pieces is changed in place before it is needed (in
inference mode nothing counts versions) and loses its gradient in ``autograd.Function``, and tracing
refuses control flow. The source answers both questions that matter, who else uses the value and
what runs in between, before anything runs; the methods it concerns are compiled again with only
those calls exchanged. So nothing that was not exchanged costs anything, and ``torch.compile`` and
``torch.export`` see ordinary Python. Only what the source does not show is checked at every call.

    source.py    trees of methods, and methods from trees
    names.py     what expressions name, and where values are used
    layers.py    which modules may take pieces
    flow.py      where a value goes, or why it must be built
    pieces.py    gathers, repeats and broadcasts in the list
    stacked.py   weighted sums of stacks
    runtime.py   what the exchanged calls do; leaves.py the layers at the end
    api.py       fuse
    trial.py     example_inputs: the same results? how fast?
    report.py    what was done, and the way back
    graph.py     the same on the graphs of torch.compile
"""

from mmfast.fusing.api import fuse
from mmfast.fusing.graph import inductor
from mmfast.fusing.report import Fused, Measured, Report, Skipped

__all__ = ["Fused", "Measured", "Report", "Skipped", "fuse", "inductor"]
