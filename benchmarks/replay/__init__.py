"""A slice of a real trace, in a hurry, on a real cluster: what sharding changes, by the system's own counters.

    python -m benchmarks.replay [--json] [--servers 3] [--functions 100] [--minutes 24] [--speed 12] [--slots 40] ...

Two clusters, one after the other, get the same requests at the same moments on the same servers: the first as it is by
default, the second with ``--no-sharding``. All of it is real: Ray, server processes, isolates, TLS.

* ``slice`` cuts the trace: some of its functions, some of its minutes, its popular functions thinned;
* ``site`` brings up a cluster, deploys, and reads its counters before and after; ``client`` is the load's process;
* ``ray_call`` measures, all through the load, what one Ray actor call of the same size takes in the same cluster.
  Requests to a home do not make one (``actors/call_line.py``); it is what they would be compared with;
* ``breakdown`` says where the time of a sharded request goes, by the spans of its trace;
* ``report`` makes figures and the table, ``counters`` the differences.

**What the hurry does.** A minute of the trace lasts 60/speed seconds, and requests are that many times denser, while
nothing of the product goes faster: its averages of heat (10 s and 10 min), the horizon over which it believes them (10
min) and its habits are in real seconds. So more workers look hot than would, and have copies where there is room for
them: the sharded share is higher in real time. Cold starts are compared by order of events and not by time, and both
clusters are in the same hurry: unsharded, what counts is how many other workers are asked on a machine before one is
asked again, and that does not change with speed.

**What thinning does.** A few functions have most requests. They are warm everywhere in both modes, and the client could
not send them; each keeps at most ``--per-minute`` requests of a minute. Shares of all requests mean nothing because of
that; numbers of cold starts and latencies do.

Isolates are those of small C and Zig workers, whose start costs about a millisecond: so many can be had that the
number of places in a host, ``--slots``, is what is scarce, or its memory, with ``--memory-mib``.
"""
