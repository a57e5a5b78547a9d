"""Relaxation in third-party training programs. Each module imports its program when it is imported or used."""
