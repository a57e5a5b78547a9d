"""Relaxation inside other people's training programs: each module imports its program when it is imported or used."""
