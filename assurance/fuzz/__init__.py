"""What `assurance.fuzz` shows hostile bytes to, and how it judges what happens."""
