"""Commands that measure Variegate: each is ``python -m benchmarks.<name>`` and writes one result file."""
