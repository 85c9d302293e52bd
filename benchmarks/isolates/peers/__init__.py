"""Others that answer some of the same questions, on this machine and in this run.

They are servers: they are asked over one open HTTP/1.1 connection on loopback by a plain blocking socket, which their
figures include and ours do not. They are installed on demand by ``installed``; one file a peer says how it is started
and asked, and ``server`` has what they share.
"""
