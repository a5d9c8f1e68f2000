"""`variegate device serve`: labels over HTTP and over a Unix socket. HTTP's packages are loaded when it runs."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from variegate.cli.console import note, table
from variegate.cli.device_open import add_broker_options, as_isolated, host_line, open_device
from variegate.cli.options import whole
from variegate.device_sim.hosting import host_of
from variegate.isolation.host import Isolated
from variegate.isolation.lockdown import close_supervisor
from variegate.keys.errors import MisuseError
from variegate.runtime.enclave import Protection, ProtectionState
from variegate.runtime.port import LabelPort
from variegate.serve.binding import address_text
from variegate.serve.limits import ServeLimits

if TYPE_CHECKING:
    from variegate.serve.server import ServeOptions, Service
    from variegate.serve.tls import TlsFiles

EXAMPLE = (
    "variegate device serve camera7\n  variegate device serve camera7 --host 0.0.0.0 --tls-cert server.pem"
    " --tls-key server.key --tls-client-ca clients.pem\n  variegate device serve camera7 --no-http"
    " --socket /run/camera7.labels"
)
_CLOSED = "the TPM gives it to nobody until this machine starts again"
_OPEN = "whoever is root here can have it from the chip"
_MODE_DIGITS = {"600": 0o600, "660": 0o660, "666": 0o666}
_MOST_PORTS = 65535


def add_options(parser: argparse.ArgumentParser) -> None:
    """Fills the command's parser; `folder` is there already."""
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address or name for HTTP (default: %(default)s); where that is this machine alone, requests name it, "
        "localhost, or an IP address as their Host",
    )
    parser.add_argument(
        "--port",
        type=whole(0, _MOST_PORTS, "a port"),
        default=8000,
        help="port for HTTP; 0 for a free one (default: 8000)",
    )
    parser.add_argument("--no-http", action="store_true", help="serve on --socket only")
    parser.add_argument(
        "--socket", type=Path, metavar="PATH", help="also serve the label socket (docs/label-socket.md)"
    )
    parser.add_argument(
        "--socket-mode", choices=_MODE_DIGITS, default="600", help="file mode of the socket (default: 600)"
    )
    parser.add_argument("--metrics-host", default="127.0.0.1", help="address for --metrics-port (default: %(default)s)")
    parser.add_argument(
        "--metrics-port",
        type=whole(0, _MOST_PORTS, "a port"),
        help="serve /metrics there, and health, which clients cannot crowd out; without it /metrics is on --port, but"
        " only when --host is this machine alone, since it tells what is left of the budget",
    )
    help_evidence = "also sign evidence for whoever asks (GET /v1/evidence/NONCE); it tells what is left of the budget"
    parser.add_argument("--evidence", action="store_true", help=help_evidence)
    add_broker_options(parser)
    tls = parser.add_argument_group("TLS")
    tls.add_argument("--tls-cert", type=Path, metavar="PEM", help="the server's certificate and its chain")
    tls.add_argument("--tls-key", type=Path, metavar="PEM", help="its key, not encrypted, mode 600")
    tls.add_argument(
        "--tls-client-ca", type=Path, metavar="PEM", help="accept only clients with a certificate of this CA"
    )
    tls.add_argument("--tls-min", choices=("1.2", "1.3"), default="1.2", help="oldest version (default: 1.2)")
    bounds = parser.add_argument_group("limits", "sizes in bytes, times in seconds")
    for one in fields(ServeLimits):
        kind = int if isinstance(one.default, int) else float
        text = f"{one.metadata['help']} (default: {one.default})"
        bounds.add_argument(f"--{one.name.replace('_', '-')}", type=kind, default=one.default, metavar="N", help=text)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT."""
    from variegate.serve.server import ServeOptions, Service  # noqa: PLC0415  an extra

    options = ServeOptions(
        host=None if args.no_http else args.host,
        port=args.port,
        metrics_host=args.metrics_host,
        metrics_port=args.metrics_port,
        socket=args.socket,
        socket_mode=_MODE_DIGITS[args.socket_mode],
        tls=_tls(args),
        limits=ServeLimits(**{one.name: getattr(args, one.name) for one in fields(ServeLimits)}),
    )
    options.check()  # before a boot is spent on it
    if not host_of(args.folder).policy.debug:
        close_supervisor()
    with open_device(args) as device:
        port = device.boot()
        if isinstance(port, Isolated):
            options = replace(
                options, restarts=lambda: port.restarts, evidence=port.evidence if args.evidence else None
            )
        elif args.evidence:
            as_isolated(port)  # which it is not
        closed = device.close_boot()
        key = Protection.when("key", closed, _CLOSED if closed else _OPEN)
        protections = (*port.status().protections, key, *options.protections())
        Service(port, options, on_start=lambda service: _tell(service, port, options, protections)).run()
    note("stopped")
    return 0


def _tls(args: argparse.Namespace) -> TlsFiles | None:
    from variegate.serve.tls import TlsFiles  # noqa: PLC0415  goes with the extra

    if args.tls_cert is None and args.tls_key is None:
        if args.tls_client_ca is not None:
            raise MisuseError("client certificates need TLS", hint="give --tls-cert and --tls-key, too")
        return None
    if args.tls_cert is None or args.tls_key is None:
        raise MisuseError("TLS needs a certificate and its key", hint="give both --tls-cert and --tls-key")
    return TlsFiles(certificate=args.tls_cert, key=args.tls_key, client_ca=args.tls_client_ca, minimum=args.tls_min)


def _tell(service: Service, port: LabelPort, options: ServeOptions, protections: tuple[Protection, ...]) -> None:
    """Prints the addresses for labels, and the protections that are on and off."""
    m = port.manifest
    note(f"copy {m.sequence}: {m.dtype} frames of {' x '.join(map(str, m.shape))}, {m.classes} classes")
    note(
        table([(p.name, p.state if p.state is ProtectionState.ON else p.state.upper(), p.reason) for p in protections])
    )
    note(host_line(protections))
    if service.address is not None:
        note(f"serving at {'http' if options.tls is None else 'https'}://{address_text(service.address)}")
    if service.metrics_address is not None:
        note(f"metrics at http://{address_text(service.metrics_address)}/metrics")
    if options.socket is not None:
        note(f"label socket at {options.socket}")
