"""The host side of WASI 0.2: one file a package, each a list of plain functions of plain values."""

from isolates.wasi import bulk, cli, clocks, config, denied, http, io, keyvalue, random
from isolates.wit import World


def world() -> World:
    """Everything a guest may import. Built once per process; the order is that of the types' dependencies."""
    made = World()
    io.define(made)
    bulk.define(made)
    clocks.define(made)
    random.define(made)
    cli.define(made)
    config.define(made)
    keyvalue.define(made)
    http.define(made)
    denied.define(made)
    return made
