"""What workers are called: `NAME`, or `NAMESPACE/USER` for a user's worker in a dispatch namespace.

A name is one DNS label, so that `<name>.localhost` and `<name>.binding.internal` are host names. A worker of a
namespace has the namespace in its identity, and not in a field of its versions or deployments: it cannot move to
another one, two of its versions cannot disagree, users of two namespaces may have the same name, and everything that is
keyed by the worker (the catalog, the ring, traces) keeps them apart without knowing of namespaces. The slash is what no
host name has: no host name leads to such a worker by itself.
"""

from __future__ import annotations

import re
from typing import Final, NewType

WorkerName = NewType("WorkerName", str)

LABEL: Final = r"[a-z][a-z0-9-]{0,62}"
"""One lower-case DNS label that starts with a letter; also how namespaces, bindings and cordons are spelled."""

_LABEL: Final = re.compile(LABEL)
_WORKER: Final = re.compile(f"(?:{LABEL}/)?{LABEL}")


def is_worker_name(text: str) -> bool:
    """True when `text` is a lower-case DNS label that starts with a letter, 1 to 63 characters."""
    return _LABEL.fullmatch(text) is not None


def is_worker(text: str) -> bool:
    """True when `text` names a worker: a label, or a namespace's, a slash, and a user's."""
    return _WORKER.fullmatch(text) is not None


def worker_name(text: str) -> WorkerName:
    """`text` as a worker's name. Raises ValueError when it is none."""
    if not is_worker(text):
        raise ValueError(f"worker: must match {LABEL}, or be NAMESPACE/USER of two such names")
    return WorkerName(text)


def user_worker(namespace: str, user: str) -> WorkerName:
    """The worker of `user` in `namespace`; without a namespace, the worker of that name. Raises ValueError."""
    if namespace:
        label_of("namespace", namespace)
    label_of("worker", user)
    return WorkerName(f"{namespace}/{user}" if namespace else user)


def namespace_of(worker: str) -> str:
    """The dispatch namespace that a worker is in; "" for one that is in none."""
    return worker.partition("/")[0] if "/" in worker else ""


def cordon_name(text: str) -> str:
    """`text` as the name of a cordon, a group of workers of one trust (`actors.cordons`). Raises ValueError.

    It is spelled like a worker's, or it is a namespace's users': those begin with what no other name begins with, so
    that no operator's cordon is by accident that of somebody's users.
    """
    is_users = isinstance(text, str) and text.startswith("@")
    return users_cordon(text[1:]) if is_users else label_of("cordon", text)


def cordon_for(worker: str, text: str) -> str:
    """`text` as the name of a cordon that `worker` may be in: not that of another namespace's users, nor of any if it
    is in none. Raises ValueError."""
    cordon = cordon_name(text)
    if cordon.startswith("@") and cordon[1:] != namespace_of(worker):
        raise ValueError(f"cordon: {cordon} is for the users of that namespace alone")
    return cordon


def users_cordon(namespace: str) -> str:
    """The cordon of a dispatch namespace's users. Raises ValueError."""
    return "@" + label_of("cordon", namespace)


def label_of(field: str, value: object) -> str:
    """`value` as a label. Raises ValueError naming `field`."""
    if not isinstance(value, str) or not is_worker_name(value):
        raise ValueError(f"{field}: must match {LABEL}")
    return value
