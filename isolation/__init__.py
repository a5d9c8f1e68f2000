"""The enclave in a process of its own: locked down, its weights and keys in pages that no plain read reaches."""
