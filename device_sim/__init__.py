"""A simulated device: fuses, a disk that loses power, two slots, flashing. Imports `keys` and `runtime`."""
