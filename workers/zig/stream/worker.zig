//! Writes `?chunks=5` lines, `?interval_ms=20` apart: what streaming looks like, and a worker that waits for free.
const http = @import("wasi_http");

// A test's mistake should end within a request's time, not run for days.
const chunks_max = 10_000;
const interval_ms_max = 10_000;

comptime {
    http.serve(handle);
}

fn handle(request: *http.Request, response: *http.Response) http.Error!void {
    const chunks = @min(request.queryNumber("chunks") orelse 5, chunks_max);
    const interval_ms = @min(request.queryNumber("interval_ms") orelse 20, interval_ms_max);
    try response.header("content-type", "text/plain");
    try response.begin(200);
    for (0..@intCast(chunks)) |index| {
        if (index > 0) http.wait(interval_ms);
        try response.print("chunk {d}\n", .{index});
    }
}
