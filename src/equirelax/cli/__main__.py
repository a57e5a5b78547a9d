"""`python -m equirelax.cli`."""

import sys

from equirelax.cli.main import main

sys.exit(main())
