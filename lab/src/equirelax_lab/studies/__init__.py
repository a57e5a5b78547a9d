"""Many runs as one: grids of benchmarks, models, methods, settings and seeds from a file."""
