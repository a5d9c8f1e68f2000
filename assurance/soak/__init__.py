"""The real server for minutes under good and hostile clients."""
