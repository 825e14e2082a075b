"""`python -m margins` is the command `margins`."""

import sys

from margins.cli import main

if __name__ == "__main__":
    sys.exit(main())
