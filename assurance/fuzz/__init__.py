"""The targets of `assurance.fuzz`, and how it judges their results."""
