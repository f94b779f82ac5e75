"""Benchmarks of the kernels beside the libraries that a user would pick instead."""
