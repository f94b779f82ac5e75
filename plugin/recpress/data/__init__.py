"""Readers of public data sets, for the demo and the tests; compression and serving need none of them."""
