"""Studies: grids of benchmarks, models, methods, settings and seeds from a file."""
