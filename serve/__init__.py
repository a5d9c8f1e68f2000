"""Serves a device's labels over the network with the Open Inference Protocol."""
