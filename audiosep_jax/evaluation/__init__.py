"""Evaluation: scores a separator on benchmarks and writes reports."""
