"""`python -m dibs`: the command line."""

import sys

from dibs.cli import main

sys.exit(main())
