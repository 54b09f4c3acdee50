"""``python -m mmfast.bench``: the same as ``mmfast bench``."""

import sys

from mmfast.bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
