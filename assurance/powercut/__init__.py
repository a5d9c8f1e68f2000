"""Power cuts and kills of a device that is being flashed."""
