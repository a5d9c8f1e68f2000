"""Evidence of the software that a device runs, its verifier, and the key broker that requires it."""
