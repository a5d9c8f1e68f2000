"""Runs the enclave in a process of its own: locked down, with weights and keys in pages that no plain read reaches."""
