"""Attacks that the project makes on its own device: what is claimed is tried."""
