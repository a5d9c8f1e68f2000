"""The red-team harness: attacks that see labels only, campaigns over a fleet, and what their results mean."""
