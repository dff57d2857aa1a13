# SPDX-License-Identifier: Apache-2.0
"""Dedicated slab caches of the kernel and the struct that each one's objects begin with.

A check believes a cache's name only while nothing is merged into the cache (its reference count is 1).  Names
are those given to kmem_cache_create or, for sockets, ``proto.name`` (net/core/sock.c proto_register, 6.1).
"""

from __future__ import annotations

from collections.abc import Mapping

CACHE_STRUCTS: Mapping[str, str] = {
    "SCTP": "sctp_sock",  # net/sctp/socket.c sctp_prot
    "SCTPv6": "sctp6_sock",  # net/sctp/socket.c sctpv6_prot
    "TCP": "tcp_sock",  # net/ipv4/tcp_ipv4.c
    "TCPv6": "tcp6_sock",
    "UDP": "udp_sock",
    "UDPv6": "udp6_sock",
    "RAW": "raw_sock",
    "RAWv6": "raw6_sock",
    "PING": "inet_sock",
    "UNIX": "unix_sock",
    "sock_inode_cache": "socket_alloc",  # net/socket.c
    "skbuff_head_cache": "sk_buff",  # net/core/skbuff.c, 6.1
    "skbuff_cache": "sk_buff",  # renamed before 6.12
    "skbuff_fclone_cache": "sk_buff",  # two of them, struct sk_buff_fclones
    "net_namespace": "net",  # net/core/net_namespace.c
    "filp": "file",  # fs/file_table.c
    "dentry": "dentry",  # fs/dcache.c
    "task_struct": "task_struct",  # kernel/fork.c
}

SOCKET_BASES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "tcp_sock",
            "tcp6_sock",
            "udp_sock",
            "udp6_sock",
            "raw_sock",
            "raw6_sock",
            "sctp_sock",
            "sctp6_sock",
        ),
        ("inet_sock", "sock"),
    ),
    "inet_sock": ("sock",),
    "unix_sock": ("sock",),
}
"""What such structs begin with, where a description does not know the struct itself (include/net, 6.1)."""

INSTANCES: Mapping[str, tuple[str, ...]] = {
    "net": ("init_net",),  # net/core/net_namespace.c
    "task_struct": ("init_task",),  # init/init_task.c
    "sctp_globals": ("sctp_globals",),  # net/sctp/protocol.c
}


INSTANCE_POINTERS: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    # the control socket of the initial namespace: net/sctp/protocol.c sctp_ctl_sock_init, 6.1
    "sctp_sock": (("init_net", "net", "sctp.ctl_sock"),),
}
"""Objects that a field of a named object points to: (symbol, its struct, path of the field)."""


PAYLOAD_CACHES: tuple[str, ...] = (
    "kmalloc*",  # mm/slab_common.c, 6.1 and 6.12
    "dma-kmalloc*",
    "skbuff_small_*",  # net/core/skbuff.c, 6.12: the data of small packets
    "msg_msg*",  # ipc/msgutil.c, 6.12
    "memdup_user*",  # mm/util.c, 6.12
    "names_cache*",  # fs/dcache.c: paths
)
"""Caches whose objects hold what users send, so that their content proves nothing."""


NAME_COLUMNS: tuple[tuple[str, int], ...] = tuple(
    (f"{part}{word}", 8) for word in range(3) for part in ("mask", "name")
)
"""Columns of a table by the name of a cache, filled by `name_words`."""


def name_words(name: str) -> tuple[int, ...]:
    """Mask and value of each of three words that compare the first 24 bytes of a C string with ``name``, its end
    included unless it ends in ``*``."""
    prefix = name.endswith("*")
    data = name.removesuffix("*").encode()[:24]
    data = data + b"\0" if len(data) < 24 and not prefix else data
    masks = b"\xff" * len(data)
    return tuple(
        int.from_bytes(part[at : at + 8].ljust(8, b"\0"), "little")
        for at in range(0, 24, 8)
        for part in (masks, data)
    )
