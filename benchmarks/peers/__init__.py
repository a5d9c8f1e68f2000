"""Other toolkits, run as their users run them, for comparison."""
