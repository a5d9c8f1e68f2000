"""The command `variegate`: one group of sub-commands for each role."""
