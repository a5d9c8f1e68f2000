"""Evidence of what a device runs, who checks it, and what is released against it."""
