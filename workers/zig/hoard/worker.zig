//! Takes memory and never gives it back: `?mib=N` more with each request, or without end. Traps when it is refused.
const http = @import("wasi_http");

const page_bytes = 64 * 1024;
const pages_per_mib = 1024 * 1024 / page_bytes;
// What the machine hands out at a time; one byte in each makes it real.
const host_page_bytes = 4096;

var held_mib: u64 = 0;

comptime {
    http.serve(handle);
}

fn handle(request: *http.Request, response: *http.Response) http.Error!void {
    const wanted_mib = request.queryNumber("mib");
    var taken_mib: u64 = 0;
    while (wanted_mib == null or taken_mib < wanted_mib.?) : (taken_mib += 1) takeMib();
    try response.text(200, "holding {d} MiB\n", .{held_mib});
}

fn takeMib() void {
    const grown_from = @wasmMemoryGrow(0, pages_per_mib);
    if (grown_from < 0) @trap();
    const start: [*]volatile u8 = @ptrFromInt(@as(usize, @intCast(grown_from)) * page_bytes);
    var offset: usize = 0;
    while (offset < pages_per_mib * page_bytes) : (offset += host_page_bytes) start[offset] = 1;
    held_mib += 1;
}
