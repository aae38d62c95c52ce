"""Exact problems that the tests and the benchmarks ask."""
