"""The part that runs on the device's machine as root: one zip file that needs only the standard library."""
