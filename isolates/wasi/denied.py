"""wasi:filesystem without a single preopened directory, wasi:sockets without a single socket.

Toolchains import these packages even when the worker never calls them (Python and Go import all of them), so they
must be there. A worker can never hold a descriptor or a socket: creating one is refused with the package's own error,
so the methods on them cannot be reached; they trap, naming themselves, if a guest forges its way there.
"""

from isolates.abi import Callback, trap
from isolates.component_value import Err
from isolates.guest import Guest
from isolates.wit import World

_DESCRIPTOR_METHODS = """
    read-via-stream write-via-stream append-via-stream advise sync-data get-flags get-type set-size set-times read write
    read-directory sync create-directory-at stat stat-at set-times-at link-at open-at readlink-at remove-directory-at
    rename-at symlink-at unlink-file-at is-same-object metadata-hash metadata-hash-at
"""
_TCP_METHODS = """
    start-bind finish-bind start-connect finish-connect start-listen finish-listen accept local-address remote-address
    is-listening address-family set-listen-backlog-size keep-alive-enabled set-keep-alive-enabled keep-alive-idle-time
    set-keep-alive-idle-time keep-alive-interval set-keep-alive-interval keep-alive-count set-keep-alive-count hop-limit
    set-hop-limit receive-buffer-size set-receive-buffer-size send-buffer-size set-send-buffer-size subscribe shutdown
"""
_UDP_METHODS = """
    start-bind finish-bind stream local-address remote-address address-family unicast-hop-limit set-unicast-hop-limit
    receive-buffer-size set-receive-buffer-size send-buffer-size set-send-buffer-size subscribe
"""

#: interface -> {resource it defines: its methods}
_UNREACHABLE: dict[str, dict[str, str]] = {
    "wasi:filesystem/types": {
        "descriptor": _DESCRIPTOR_METHODS,
        "directory-entry-stream": "read-directory-entry",
    },
    "wasi:sockets/tcp": {"tcp-socket": _TCP_METHODS},
    "wasi:sockets/udp": {
        "udp-socket": _UDP_METHODS,
        "incoming-datagram-stream": "receive subscribe",
        "outgoing-datagram-stream": "check-send send subscribe",
    },
    "wasi:sockets/ip-name-lookup": {"resolve-address-stream": "resolve-next-address subscribe"},
}

#: interface -> resources of other interfaces that it mentions under the same name
_MENTIONS: dict[str, tuple[str, ...]] = {
    "wasi:filesystem/types": ("input-stream", "output-stream", "error"),
    "wasi:sockets/tcp": ("input-stream", "output-stream", "pollable", "network"),
    "wasi:sockets/udp": ("pollable", "network"),
    "wasi:sockets/ip-name-lookup": ("pollable", "network"),
}


class Network:
    """The ``wasi:sockets/network`` a guest may hold: it stands for no network at all."""

    __slots__ = ()


def define(world: World) -> None:
    """wasi:filesystem/{types,preopens}, wasi:sockets/*."""
    network = world.interface("wasi:sockets/network@0.2.12")
    network.resource("network")
    network.use_resource("error", "error")
    network.enum("network-error")
    network.func("network-error-code: func(err: borrow<error>) -> option<network-error>")(lambda guest, error: None)

    for name, resources in _UNREACHABLE.items():
        interface = world.interface(f"{name}@0.2.12")
        for mentioned in _MENTIONS[name]:
            interface.use_resource(mentioned, mentioned)
        for resource, methods in resources.items():
            interface.resource(resource)
            for method in methods.split():
                function = f"[method]{resource}.{method}"
                interface.callbacks[function] = _unreachable(f"{name}#{function}")

    _define_entrances(world)


def _define_entrances(world: World) -> None:
    """The few functions that a guest can reach: each says no in the words of its package."""
    files = world.interfaces["wasi:filesystem/types@0.2.12"]
    files.enum("file-error")

    @files.func("filesystem-error-code: func(err: borrow<error>) -> option<file-error>")
    def filesystem_error_code(guest: Guest, error: object) -> None:
        return None

    preopens = world.interface("wasi:filesystem/preopens@0.2.12")
    preopens.use_resource("descriptor", "descriptor")

    @preopens.func("get-directories: func() -> list<tuple<own<descriptor>, string>>")
    def get_directories(guest: Guest) -> list[object]:
        return []

    instance_network = world.interface("wasi:sockets/instance-network@0.2.12")
    instance_network.use_resource("network", "network")

    @instance_network.func("instance-network: func() -> own<network>")
    def the_network(guest: Guest) -> Network:
        return Network()

    world.interfaces["wasi:sockets/network@0.2.12"].enum("address-family")
    for protocol in ("tcp", "udp"):
        create = world.interface(f"wasi:sockets/{protocol}-create-socket@0.2.12")
        create.use_resource("network", "network")
        create.use_resource(f"{protocol}-socket", f"{protocol}-socket")
        create.func(
            f"create-{protocol}-socket: func(address-family: address-family)"
            f" -> result<own<{protocol}-socket>, network-error>"
        )(lambda guest, family: Err("access-denied"))

    lookup = world.interfaces["wasi:sockets/ip-name-lookup@0.2.12"]

    @lookup.func(
        "resolve-addresses: func(network: borrow<network>, name: string)"
        " -> result<own<resolve-address-stream>, network-error>"
    )
    def resolve_addresses(guest: Guest, network: Network, name: str) -> Err[str]:
        return Err("access-denied")


def _unreachable(name: str) -> Callback:
    message = f"{name} was called on a resource that does not exist".encode()

    def called(data: int, context: int, kind: int, arguments: int, count: int, results: int, result_count: int) -> int:
        return trap(context, LookupError(name), message)

    return called
