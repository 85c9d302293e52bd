"""workerd's Worker Loader: an isolate of V8 for each tenant, made when the tenant is first asked.

The fair peer for cold starts of tenants: one process, many tenants, code that is loaded at run time. A worker before
them picks the tenant by the request's path.
"""

import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.isolates.figure import PeerRow
from benchmarks.isolates.peers.server import free_port, serving
from benchmarks.isolates.process_memory import private_bytes

NAME = "workerd, Worker Loader"
BESIDE = ("js_hello_cold_ms", "js_hello_warm_ms", "js_private_mb")
_CONFIG = """
using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [(name = "main", worker = .main)],
  sockets = [(name = "http", address = "127.0.0.1:PORT", http = (), service = "main")],
);
const main :Workerd.Worker = (
  modules = [(name = "main.js", esModule = embed "main.js")],
  compatibilityDate = "2025-09-01",
  bindings = [(name = "LOADER", workerLoader = (id = "tenants"))],
);
"""
_ROUTER = """
const tenant = `
let served = 0;
export default {
  async fetch(request) {
    served += 1;
    return Response.json({ hello: 'tenant', method: request.method, path: new URL(request.url).pathname, served });
  },
};`;
const code = { compatibilityDate: '2025-09-01', mainModule: 'worker.js', modules: { 'worker.js': tenant },
               globalOutbound: null };
export default {
  fetch(request, env) {
    return env.LOADER.get(new URL(request.url).pathname, () => code).getEntrypoint().fetch(request);
  },
};
"""


def rows(program: Path, *, quick: bool) -> list[PeerRow]:
    """Cold, warm and memory of tenants' isolates. ``PeerFailed`` when it does not serve."""
    tenants, requests = (10, 20) if quick else (200, 1_000)
    with tempfile.TemporaryDirectory(prefix="everwarm-peer-") as directory:
        port, config = free_port(), Path(directory) / "config.capnp"
        config.write_text(_CONFIG.replace("PORT", str(port)))
        (Path(directory) / "main.js").write_text(_ROUTER)
        command = [str(program), "serve", "--experimental", str(config)]
        with serving(command, port, start_timeout_s=30.0) as server:
            # Starts the worker before the tenants, and a first one.
            server.asking.get("/first")
            before_bytes, cold_s = private_bytes(server.pid), []
            for number in range(tenants):
                began = time.perf_counter()
                server.asking.get(f"/tenant-{number}")
                cold_s.append(time.perf_counter() - began)
            each_mb = (private_bytes(server.pid) - before_bytes) / tenants / 1e6
            warm_ms = server.asking.median_ms(requests, "/tenant-0")
    cold, warm, private = BESIDE
    hops = "V8; over HTTP and through a worker that picks the tenant"
    return [
        PeerRow(NAME, "new tenant's first answer", cold, hops, statistics.median(cold_s) * 1e3),
        PeerRow(NAME, "next answer", warm, hops, warm_ms),
        PeerRow(NAME, "private memory each", private, f"V8; growth over {tenants} tenants", each_mb),
    ]
