"""Campaigns: attacks over fleets, in units of work that survive kills; results depend on the file alone."""
