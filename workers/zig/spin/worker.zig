//! Burns CPU for `?rounds=N`, or for ever. Rounds, not time: clocks stand still while a worker computes.
const std = @import("std");
const http = @import("wasi_http");

// About a microsecond on a 2026 server core.
const steps_per_round = 500;

comptime {
    http.serve(handle);
}

fn handle(request: *http.Request, response: *http.Response) http.Error!void {
    const rounds = request.queryNumber("rounds") orelse std.math.maxInt(u64);
    var state: u64 = 0x9e3779b97f4a7c15;
    var round: u64 = 0;
    while (round < rounds) : (round += 1) {
        for (0..steps_per_round) |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
        }
        std.mem.doNotOptimizeAway(state);
    }
    try response.text(200, "spun {d} rounds, ended at {x}\n", .{ rounds, state });
}
