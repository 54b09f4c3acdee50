"""``python -m mmfast ...``, and ``torchrun -m mmfast ...``: the command, as ``mmfast ...`` is."""

import sys

from mmfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
