"""What root reads of a serving enclave."""
