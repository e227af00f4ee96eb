"""``python -m moe_hw.cli``: the ``moe-hw`` command."""

import sys

from moe_hw.cli import main

if __name__ == "__main__":
    sys.exit(main())
