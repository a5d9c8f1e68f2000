"""Datasets and networks that tests and benchmarks share: see `data`, `networks` and `gtsrb_small`."""
