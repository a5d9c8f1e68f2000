"""TLS for the HTTP port, with client certificates on request."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from variegate.keys.errors import MisuseError, RefusedError
from variegate.keys.files import refuse_open_to_others

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_CIPHERS_1_2 = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Forward secret and authenticated only (RFC 9325 section 4.2); those of TLS 1.3 all are."""


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """The settings of TLS.

    Attributes:
        certificate: PEM, the server's and any between it and its root.
        key: PEM, not encrypted, readable by its owner only.
        client_ca: PEM of the CA of clients' certificates; with it, a client without one is refused.
        minimum: "1.2" or "1.3".
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None
    minimum: str = "1.2"

    def context(self) -> ssl.SSLContext:
        """The context for the server.

        Raises:
            MisuseError: A file is missing, damaged, encrypted or open to others, or the version is unknown.
        """
        if self.minimum not in VERSIONS:
            raise MisuseError(f"TLS {self.minimum} is not among {', '.join(VERSIONS)}")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = VERSIONS[self.minimum]
        context.set_ciphers(_CIPHERS_1_2)
        context.options |= ssl.OP_NO_RENEGOTIATION
        try:
            refuse_open_to_others(self.key, self.key.stat())
        except RefusedError as error:
            raise MisuseError(error.message, hint=error.hint) from None
        except OSError as error:
            raise MisuseError(f"the TLS key {self.key} cannot be read") from error
        try:
            # An encrypted key would otherwise be asked for on the terminal.
            context.load_cert_chain(self.certificate, self.key, password=lambda: "")
        except (OSError, ValueError):
            hint = "give PEM files that belong together, the key not encrypted"
            raise MisuseError("the TLS certificate or its key cannot be used", hint=hint) from None
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except (OSError, ValueError):
                raise MisuseError("the file of client authorities cannot be used", hint="give PEM") from None
            context.verify_mode = ssl.CERT_REQUIRED
        return context
