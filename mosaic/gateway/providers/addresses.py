"""Where a provider may be: public http(s) addresses, unless the platform's settings allow private ones.

An endpoint's owner chooses the address and the gateway calls it, from inside the network (server-side request forgery,
https://owasp.org/www-community/attacks/Server_Side_Request_Forgery). What is checked is the address that a socket is
about to connect to, after the name was resolved: a name that resolves to another address the second time (DNS
rebinding) gets no further than any other. Checking what a resolver answers would not do: a host that is an address
already is never resolved.
"""

import ipaddress
import socket
from collections.abc import Callable

from aiohttp import AddrInfoType

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_METADATA = (
    ipaddress.ip_network("169.254.0.0/16"),
    ipaddress.ip_network("fe80::/10"),
    ipaddress.ip_network("fd00:ec2::/32"),
    ipaddress.ip_network("100.100.100.200/32"),
    ipaddress.ip_network("168.63.129.16/32"),
)
"""Where clouds tell a machine its own credentials: link-local, and what AWS, Alibaba and Azure have besides."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class AddressRefused(OSError):
    """An OSError, so that an HTTP client takes it as a connection that could not be made."""


def is_allowed(address: str, *, allow_private: bool) -> bool:
    """Whether the gateway may connect there; `address` is an IP address. `allow_private` never allows metadata."""
    inner = _unwrapped(ipaddress.ip_address(address.partition("%")[0]))
    if inner.is_multicast or inner.is_unspecified or any(inner in network for network in _METADATA):
        return False
    return inner.is_global or allow_private


def _unwrapped(address: Address) -> Address:
    """The IPv4 address that an IPv6 address leads to, through a mapping, a tunnel or a translator."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def guarded_sockets(*, allow_private: bool) -> Callable[[AddrInfoType], socket.socket]:
    """For aiohttp's TCPConnector: makes a socket for an address, or raises AddressRefused."""

    def open_socket(info: AddrInfoType) -> socket.socket:
        family, kind, protocol, _, place = info
        if not is_allowed(str(place[0]), allow_private=allow_private):
            # Without the address: what a name resolves to inside is not for the caller to learn.
            raise AddressRefused("its address is not public, which this platform's settings do not allow")
        return socket.socket(family=family, type=kind, proto=protocol)

    return open_socket
