//! The front of a platform: `/USER/rest` is answered by the worker of the customer USER, as its `/rest`.
//!
//! What holds for a customer's worker is said with the request to it, in headers that the worker never sees: how much it
//! may use, and for the outbound worker (`guard`) whose it is. The answer comes back as it comes. When there is none,
//! `everwarm-outcome` says why; no worker can set that header itself, so a customer's own 404 is told from a missing
//! customer.
const std = @import("std");
const http = @import("wasi_http");

/// Of one request, whatever the plan of the customer's worker allows.
const limits = "cpu_ms=50, subrequests_max=5";
// A label of a host name.
const customer_bytes_max = 63;
// As long as a target may be at the edge, and the host name before it.
const url_bytes_max = 17 * 1024;

comptime {
    http.serve(handle);
}

fn handle(request: *http.Request, response: *http.Response) http.Error!void {
    return serve(request, response) catch |failure| switch (failure) {
        error.Failed => error.Disconnected,
        else => |other| other,
    };
}

fn serve(request: *http.Request, response: *http.Response) http.FetchError!void {
    const target = std.mem.cutPrefix(u8, request.target, "/") orelse "";
    const end = std.mem.findAny(u8, target, "/?") orelse target.len;
    const customer, const rest = .{ target[0..end], target[end..] };
    if (customer.len == 0) return response.text(200, "Customers' workers are below: /alice/, /bob/\n", .{});
    if (!isName(customer)) return response.text(404, "There is no customer of that name.\n", .{});

    var url_room: [url_bytes_max]u8 = undefined;
    const slash = if (rest.len > 0 and rest[0] == '/') "" else "/";
    const url = std.fmt.bufPrint(&url_room, "http://{s}.dispatch.internal{s}{s}", .{ customer, slash, rest }) catch
        return response.text(414, "That address is too long.\n", .{});
    const uploads = switch (request.method) {
        .get, .head, .delete, .options => false,
        .post, .put, .patch => true,
        else => return response.text(405, "This platform does not know that method.\n", .{}),
    };
    var fetch = http.Fetch.send(.{
        .url = url,
        .method = request.method,
        .body = uploads,
        .headers = &.{
            .{ "everwarm-limits", limits },
            .{ "everwarm-parameter-customer", customer },
            .{ "accept", request.header("accept") orelse "*/*" },
            .{ "content-type", request.header("content-type") orelse "application/octet-stream" },
        },
    }) catch |failure| return unreached(response, customer, failure);
    defer fetch.close();

    var upload = try Upload.begin(request, uploads);
    defer upload.body.close();
    const answer = while (true) {
        if (fetch.answer() catch |failure| return unreached(response, customer, failure)) |here| break here;
        try upload.waitBeside(&fetch, fetch.subscribe());
    };
    defer answer.close();
    if (answer.header("everwarm-outcome")) |outcome| return page(response, customer, answer.status(), outcome);

    try response.header("content-type", answer.header("content-type") orelse "application/octet-stream");
    try response.begin(answer.status());
    const body = try answer.body();
    defer body.close();
    while (try body.readNow(64 * 1024)) |chunk| {
        if (chunk.len == 0) try upload.waitBeside(&fetch, body.subscribe()) else try response.write(chunk);
    }
}

/// What a request brings, on its way to the customer's worker while that already answers.
const Upload = struct {
    body: http.RequestBody,
    more: bool,

    fn begin(request: *http.Request, more: bool) http.Error!Upload {
        return .{ .body = try request.body(), .more = more };
    }

    /// Moves what there is to move, and waits until `other` is ready or there is more.
    fn waitBeside(self: *Upload, fetch: *http.Fetch, other: http.Pollable) http.Error!void {
        const next = try self.pump(fetch) orelse return other.block();
        _ = http.waitAny(&.{ other, next });
    }

    /// What the rest waits for, or null when there is none. A worker that answers without the whole body gets no more.
    fn pump(self: *Upload, fetch: *http.Fetch) http.Error!?http.Pollable {
        while (self.more) {
            const permit = fetch.permitted() catch break;
            if (permit == 0) return fetch.subscribeWrite();
            const chunk = try self.body.readNow(@intCast(permit)) orelse {
                fetch.finish() catch {};
                break;
            };
            if (chunk.len == 0) return self.body.subscribe();
            fetch.write(chunk) catch break;
        }
        self.more = false;
        return null;
    }
};

/// The platform's own words for an ending of a customer's worker.
fn page(response: *http.Response, customer: []const u8, status: u16, outcome: []const u8) http.Error!void {
    switch (status) {
        404 => try response.text(404, "There is no customer {s}.\n", .{customer}),
        429 => try response.text(429, "Sorry: {s}'s worker wants more than a request may have ({s}).\n", .{ customer, outcome }),
        503 => try response.text(503, "Sorry: {s}'s worker has no place now ({s}).\n", .{ customer, outcome }),
        else => try response.text(502, "Sorry: {s}'s worker failed ({s}).\n", .{ customer, outcome }),
    }
}

/// There is no answer, not even of the platform: above all when this request has used up what it may have.
fn unreached(response: *http.Response, customer: []const u8, failure: http.FetchError) http.Error!void {
    const why = if (failure == error.Failed) http.errorCodeName() else "such a request cannot be sent";
    try response.text(502, "Sorry: {s}'s worker cannot be reached ({s}).\n", .{ customer, why });
}

/// Lower-case letters, digits and dashes, a letter first: nothing else is a host name here, or safe in one.
fn isName(text: []const u8) bool {
    if (text.len > customer_bytes_max or !std.ascii.isLower(text[0])) return false;
    for (text) |letter| {
        if (!std.ascii.isLower(letter) and !std.ascii.isDigit(letter) and letter != '-') return false;
    }
    return true;
}
