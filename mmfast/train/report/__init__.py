"""Reports: a run, or several, as one HTML file that needs nothing beside it.

``run.py`` puts the page of a run together from ``training.py``, ``tasks.py``, ``modalities.py`` and
``examples.py``; ``comparison.py`` is the page of several runs. ``page.py`` is the frame with its
style, ``svg.py`` draws, ``record.py`` reads what a run wrote; ``demo.py`` is for ``mmfast demo``.
"""

from mmfast.train.report.comparison import write_comparison
from mmfast.train.report.run import write_report

__all__ = ["write_comparison", "write_report"]
