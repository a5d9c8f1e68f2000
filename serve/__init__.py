"""Labels over the network: the Open Inference Protocol in front of a device."""
