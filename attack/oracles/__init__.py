"""Devices that an attack may ask: copies in this process, label ports, servers, sockets, and a vehicle's camera."""
