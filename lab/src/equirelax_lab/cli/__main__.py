"""`python -m equirelax_lab.cli`."""

import sys

from equirelax_lab.cli.main import main

sys.exit(main())
