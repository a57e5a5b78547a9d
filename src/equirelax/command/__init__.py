"""`python -m equirelax`: the audit of anybody's network from the command line, with the library alone."""
