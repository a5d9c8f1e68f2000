"""Attacks of the project on its own device, which test its claims."""
