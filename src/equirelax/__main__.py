"""The entry point of `python -m equirelax`."""

import sys

from equirelax.command.main import main

sys.exit(main())
