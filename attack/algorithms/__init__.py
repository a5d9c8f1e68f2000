"""Attacks by labels alone. Each is a frozen dataclass that implements `attack.search.Attack`."""
