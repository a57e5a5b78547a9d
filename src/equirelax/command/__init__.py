"""`python -m equirelax`: audit any network from the command line, with only the library."""
