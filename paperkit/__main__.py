"""``python -m paperkit`` is the command ``paperkit``, also where nothing is installed."""

import sys

from paperkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
