"""Devices that an attack may ask: copies in this process, label ports, servers, sockets, and a vehicle's camera."""

from variegate.attack.oracles.address import open_oracle
from variegate.attack.oracles.check import Check, check_oracle
from variegate.attack.oracles.patience import Patience

__all__ = ["Check", "Patience", "check_oracle", "open_oracle"]
