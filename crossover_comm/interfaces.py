"""Where this process runs and which of its addresses the other ranks can reach."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
from dataclasses import asdict, dataclass
from pathlib import Path

from crossover_comm.errors import InvalidArgument, TransportError

__all__ = ["Locality", "choose_address", "interface_address", "routed_address"]

_SIOCGIFADDR = 0x8915  # linux/sockios.h
_DOCUMENTATION_ADDRESS = "192.0.2.1"  # RFC 5737: routed like any far host, answered by none
_ANY_PORT = 9
_MAX_NAME_BYTES = 15  # IFNAMSIZ - 1


@dataclass(frozen=True, slots=True)
class Locality:
    """What two processes must have in common to share memory and unix sockets.

    Network namespaces of one machine have the same host name, boot id and file system, hence the
    namespaces' inodes; a process id means something within one pid namespace only.
    """

    host: str
    boot: str
    network_namespace: int
    pid_namespace: int
    user: int

    @staticmethod
    def of_this_process() -> Locality:
        """Read from the system."""
        return Locality(
            host=socket.gethostname(),
            boot=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            network_namespace=os.stat("/proc/self/ns/net").st_ino,
            pid_namespace=os.stat("/proc/self/ns/pid").st_ino,
            user=os.getuid(),
        )

    def to_json(self) -> dict[str, str | int]:
        """For the store."""
        return asdict(self)

    @property
    def machine(self) -> tuple[str, str]:
        """The same for all processes of one machine, whatever their namespaces."""
        return self.host, self.boot


def choose_address(interface: str | None, master_addr: str | None, one_host: bool) -> str:
    """The address that this rank listens on.

    Args:
        interface: An interface's name or one of this host's addresses; None: find it.
        master_addr: Host of rank 0, if known.
        one_host: All ranks share this host and network namespace.

    Raises:
        InvalidArgument: `interface` is neither.
        TransportError: No address that other hosts can reach was found.
    """
    if interface is not None:
        return interface_address(interface)
    if one_host:
        return "127.0.0.1"
    for target in (master_addr, _DOCUMENTATION_ADDRESS):
        address = routed_address(target) if target else None
        if address and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
            return address
    raise TransportError(
        f"no address of host {socket.gethostname()} leads to the other ranks (master "
        f"{master_addr}): name one by init(interface=) or CROSSOVER_INTERFACE"
    )


def routed_address(target: str) -> str | None:
    """This host's address towards `target`; no packet is sent. None if there is no route."""
    try:
        candidates = socket.getaddrinfo(target, _ANY_PORT, type=socket.SOCK_DGRAM)
    except OSError:
        return None
    for family, kind, protocol, _, address in candidates:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(address)
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return None


def interface_address(interface: str) -> str:
    """The address of the interface of that name, or `interface` itself if it is one of ours.

    Raises:
        InvalidArgument: It is neither; the message lists the interfaces.
    """
    try:
        ipaddress.ip_address(interface.partition("%")[0])
    except ValueError:
        address = _ipv4_of(interface) or _ipv6_of(interface)
        if address is None:
            names = ", ".join(name for _, name in socket.if_nameindex())
            raise InvalidArgument(
                f"interface {interface!r}: expected one of this host's addresses or an interface "
                f"that has one; there are {names}"
            ) from None
        return address
    family = socket.AF_INET6 if ":" in interface else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((interface, 0))
    except OSError as error:
        raise InvalidArgument(
            f"interface {interface!r}: not an address of this host: {error.strerror}"
        ) from error
    return interface


def _ipv4_of(name: str) -> str | None:
    request = struct.pack("256s", name.encode()[:_MAX_NAME_BYTES])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            reply = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
    except OSError:
        return None
    return socket.inet_ntoa(reply[20:24])


def _ipv6_of(name: str) -> str | None:
    """The first address of global scope in the kernel's table: address, ..., scope, flags, name."""
    table = Path("/proc/net/if_inet6")
    if not table.exists():
        return None
    for line in table.read_text().splitlines():
        digits, _, _, scope, _, owner = line.split()
        if owner == name and int(scope, 16) in (0x00, 0x10):
            return str(ipaddress.IPv6Address(int(digits, 16)))
    return None
