"""What does an isolate cost: a call, an answer, a start, its memory, its limits? Without Ray, sockets and HTTP.

    python -m benchmarks.isolates [--json] [--only NAME,...] [--without-peers] [--quick]
                                  [--install-peers] [--peers-dir DIR] [--cache-dir DIR]

How it measures:

* each measurement runs in a process of its own, so that the memory, the threads and the warm caches of one do not
  disturb the next. It is ended when its time is up, a fault is told in its row, and the others go on;
* guests are built and compiled once and kept in the cache directory; nothing that is timed compiles, except what says
  so. JavaScript and Python need their toolchains (``everwarm build`` installs them, ``EVERWARM_TOOLCHAIN_DIR`` says
  where they are); without one, its figures are skipped;
* a figure is the median of many short runs. Bounds are what this project promises itself on two shared cores; on a
  busy machine they say little. Compare only what was measured in the same run;
* every answer is looked at: a fast wrong answer is a failure, not a figure.

Peers answer some of the same questions over HTTP on loopback, and are shown beside ours with what differs.

``measurements`` has the table of all of it; ``latency``, ``memory``, ``cpu`` and ``compiling`` do the measuring;
``guests`` has what they measure with; ``peers`` runs the others.
"""
