//! An outbound worker: everything that customers' workers ask of the world comes here first, and there is no way around
//! it. It sees whose request it is (the dispatcher passes `customer`), whom it is for, and decides: it answers itself,
//! asks the world in the customer's place, or refuses.
const std = @import("std");
const http = @import("wasi_http");

/// Whom customers may reach, and where that is: what they asked with, http or https, does not matter.
const open = [_]struct { []const u8, []const u8 }{
    .{ "example.com", "https://example.com" },
    .{ "www.example.com", "https://www.example.com" },
};
const url_bytes_max = 17 * 1024;

comptime {
    http.serve(handle);
}

fn handle(request: *http.Request, response: *http.Response) http.Error!void {
    const customer = request.header("everwarm-parameter-customer") orelse
        return response.text(403, "This is nobody's request.\n", .{});
    const wanted = request.authority();
    if (std.mem.eql(u8, wanted, "time.example.com")) {
        // A service of the platform's own under a name like any other.
        try note(customer, wanted, "answered here");
        return response.text(200, "tea time", .{});
    }
    for (open) |host| {
        if (std.mem.eql(u8, wanted, host[0])) return forward(request, response, customer, host);
    }
    try note(customer, wanted, "refused");
    try response.text(403, "{s} may not ask {s}", .{ customer, wanted });
}

/// Asks the world. Reading only: nobody sends anything out through this platform.
fn forward(
    request: *http.Request,
    response: *http.Response,
    customer: []const u8,
    host: struct { []const u8, []const u8 },
) http.Error!void {
    if (request.method != .get and request.method != .head) {
        try note(customer, host[0], "refused, not a GET");
        return response.text(405, "{s} may read from {s}, and no more", .{ customer, host[0] });
    }
    try note(customer, host[0], "passed on");
    var url: [url_bytes_max]u8 = undefined;
    var fetch = http.Fetch.send(.{
        .method = request.method,
        .url = std.fmt.bufPrint(&url, "{s}{s}", .{ host[1], request.target }) catch return error.Rejected,
        .headers = &.{.{ "accept", request.header("accept") orelse "*/*" }},
    }) catch return response.text(502, "{s}: {s}", .{ host[0], http.errorCodeName() });
    defer fetch.close();
    const answer = fetch.wait() catch return response.text(502, "{s}: {s}", .{ host[0], http.errorCodeName() });
    defer answer.close();
    try response.header("content-type", answer.header("content-type") orelse "application/octet-stream");
    try response.begin(answer.status());
    const body = try answer.body();
    defer body.close();
    while (try body.read()) |chunk| try response.write(chunk);
}

/// A line in the log of the platform's owner.
fn note(customer: []const u8, wanted: []const u8, done: []const u8) http.Error!void {
    // A host name has 253 characters at most.
    var line: [512]u8 = undefined;
    const text = std.fmt.bufPrint(&line, "{s} asks {s}: {s}\n", .{ customer, wanted, done }) catch return error.Rejected;
    try http.log(text);
}
