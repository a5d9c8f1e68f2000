"""Root's reads of a serving enclave."""
