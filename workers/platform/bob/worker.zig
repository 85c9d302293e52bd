//! A customer's worker in Zig. `/steal` asks somebody whom its platform does not allow, `/spin` uses more CPU time than
//! its platform allows, and everything else asks for the time and says it.
const std = @import("std");
const http = @import("wasi_http");

comptime {
    http.serve(handle);
}

fn handle(request: *http.Request, response: *http.Response) http.Error!void {
    if (std.mem.eql(u8, request.path(), "/spin")) return spin(response);
    const steals = std.mem.eql(u8, request.path(), "/steal");
    const url = if (steals) "http://prices.example.net/secret" else "http://time.example.com/now";
    return tell(response, url) catch |failure| switch (failure) {
        error.Failed => response.text(502, "bob asked {s} and got nothing: {s}\n", .{ url, http.errorCodeName() }),
        else => |other| other,
    };
}

/// Asks, and weaves the answer into its own.
fn tell(response: *http.Response, url: []const u8) http.FetchError!void {
    var fetch = try http.Fetch.send(.{ .url = url });
    defer fetch.close();
    const answer = try fetch.wait();
    defer answer.close();
    const body = try answer.body();
    defer body.close();
    const said = try body.read() orelse "nothing";
    if (answer.status() != 200) {
        return response.text(200, "hello from bob, in Zig: I was told \"{s}\" ({d})\n", .{ said, answer.status() });
    }
    try response.text(200, "hello from bob, in Zig: it is {s}\n", .{said});
}

fn spin(response: *http.Response) http.Error!void {
    var state: u64 = 0x9e3779b97f4a7c15;
    while (state != 0) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
    }
    try response.text(200, "never\n", .{});
}
