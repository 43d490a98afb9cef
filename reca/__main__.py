"""`python -m reca` is `reca`."""

import sys

from reca.cli import main

if __name__ == "__main__":
    sys.exit(main())
