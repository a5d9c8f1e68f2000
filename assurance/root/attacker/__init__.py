"""The part that runs on the device's machine as root: the standard library alone, carried as one zip file."""
