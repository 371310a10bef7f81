"""``python -m millstream_broker``: the same as ``millstream broker``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
