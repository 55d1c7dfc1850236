"""`python -m tests.robustness`: see `tests.robustness.campaign`."""

import sys

from tests.robustness.campaign import main

if __name__ == "__main__":
    sys.exit(main())
