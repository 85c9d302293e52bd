"""What does staying warm take: a trace of real requests, replayed through the product's own decisions.

A replay has S servers with a budget of memory each. Every request of the trace arrives at one of them, drawn evenly
with a seed, because the trace has no clients; a *policy* says where it runs; and the *cluster* keeps which workers have
an isolate on which server. Ours decides with `actors.ring`, `actors.routing`, `actors.heat`, `actors.load_board` and
`actors.next_use`, and what is evicted is decided by `actors.eviction` for every policy alike, so that the baselines
differ in routing alone. A request that finds no isolate where it runs is *cold*. An isolate that is started before
anybody asks for it is a *prewarm*: it takes memory and evicts like any other, has a budget, and is wasted if it goes
unused.

There are two forms of a replay. The exact one takes the requests one by one. The batch one (`batched`) takes a minute
at a time, for hundreds of servers and tens of millions of requests; it says what it assumes, and a test compares both.

What neither has: queues, time that a start takes (a prewarm is warm for the next request), more than one isolate of a
worker on a server, failures. `benchmarks.replay` has all that, on a real cluster, in the small.
"""
