"""One file a question; each prints a table, and one JSON line with ``--json``."""
