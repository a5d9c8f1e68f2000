"""Keys, signatures, keyed streams and the sealed artefact. Imports nothing else of Variegate."""
