//! Asks others. `?url=` or the header `fetch-url` names whom; the request's body goes there as it comes, and the answer
//! comes back as it comes. Several URLs with spaces between them, in the header: all at once, a line for each in the
//! order in which they answered. `connect_ms`, `first_byte_ms`, `between_bytes_ms` set time limits.
//!
//! For trying limits and endings: `times` asks one after the other, `drop` lets go at once, `hold` keeps so many open and
//! asks once more, `spin` keeps them open and computes for ever, `keep` keeps the answer for the next request, which
//! asks with `kept` what became of it.
const std = @import("std");
const http = @import("wasi_http");

const together_max = 32;

var kept: ?http.Answer = null;

comptime {
    http.serve(handle);
}

fn handle(request: *http.Request, response: *http.Response) http.Error!void {
    return serve(request, response) catch |failure| switch (failure) {
        error.Failed => error.Rejected,
        else => |other| other,
    };
}

fn serve(request: *http.Request, response: *http.Response) http.FetchError!void {
    if (request.query("kept") != null) return tellKept(response);
    const urls = request.header("fetch-url") orelse request.query("url") orelse
        return response.text(400, "Name a URL in the header fetch-url.\n", .{});
    if (request.queryNumber("times")) |times| return oneAfterTheOther(request, response, urls, times);
    if (request.query("drop") != null) return letGo(request, response, urls);
    if (request.queryNumber("hold")) |count| return hold(request, response, urls, count, false);
    if (request.queryNumber("spin")) |count| return hold(request, response, urls, count, true);
    if (request.query("keep") != null) return keep(request, response, urls);
    if (std.mem.findScalar(u8, urls, ' ') != null) return together(request, response, urls);
    return through(request, response, urls);
}

fn begin(request: *http.Request, url: []const u8, with_body: bool) http.FetchError!http.Fetch {
    return http.Fetch.send(.{
        .url = url,
        .method = if (with_body) request.method else .get,
        .body = with_body,
        .connect_timeout_ms = request.queryNumber("connect_ms"),
        .first_byte_timeout_ms = request.queryNumber("first_byte_ms"),
        .between_bytes_timeout_ms = request.queryNumber("between_bytes_ms"),
    });
}

/// What to say of a request that failed.
fn why(failure: http.FetchError) []const u8 {
    return switch (failure) {
        error.Failed => http.errorCodeName(),
        error.Rejected => "rejected",
        error.Disconnected => "disconnected",
    };
}

/// The request's body to the origin and the answer to the client, both as they come.
fn through(request: *http.Request, response: *http.Response, url: []const u8) http.FetchError!void {
    if (request.method == .post or request.method == .put or request.method == .patch)
        return exchange(request, response, url);
    var fetch = begin(request, url, false) catch |failure|
        return response.text(502, "{s}\n", .{why(failure)});
    defer fetch.close();
    const came = fetch.wait() catch |failure| return response.text(502, "{s}\n", .{why(failure)});
    defer came.close();
    try beginAs(response, came);
    const coming = try came.body();
    defer coming.close();
    while (coming.read() catch |failure| {
        try response.print("\n{s}\n", .{http.errorCodeName()});
        return failure;
    }) |chunk| try response.write(chunk);
}

/// The head of an answer like the one that came.
fn beginAs(response: *http.Response, came: http.Answer) http.FetchError!void {
    try response.header("content-type", came.header("content-type") orelse "application/octet-stream");
    try response.begin(came.status());
}

/// Both ways at once: an origin may answer while it still reads.
fn exchange(request: *http.Request, response: *http.Response, url: []const u8) http.FetchError!void {
    var fetch = begin(request, url, true) catch |failure|
        return response.text(502, "{s}\n", .{why(failure)});
    defer fetch.close();
    const body = try request.body();
    var uploading = true;
    defer body.close();

    const came = while (true) {
        if (fetch.answer() catch |failure| return response.text(502, "{s}\n", .{why(failure)})) |here| break here;
        if (!uploading) {
            fetch.subscribe().block();
            continue;
        }
        uploading = try pump(&fetch, body);
        if (uploading) _ = http.waitAny(&.{ fetch.subscribe(), try nextOf(fetch, body) });
    };
    defer came.close();
    try beginAs(response, came);
    const coming = try came.body();
    defer coming.close();
    while (true) {
        if (uploading) {
            uploading = try pump(&fetch, body);
            if (uploading) _ = http.waitAny(&.{ coming.subscribe(), try nextOf(fetch, body) });
        }
        if (!uploading) coming.subscribe().block();
        const chunk = coming.readNow(64 * 1024) catch |failure| {
            try response.print("\n{s}\n", .{http.errorCodeName()});
            return failure;
        } orelse return;
        try response.write(chunk);
    }
}

/// Moves what there is of the request's body; false when that is over.
fn pump(fetch: *http.Fetch, body: http.RequestBody) http.FetchError!bool {
    while (true) {
        // An origin that answers without the whole body takes no more of it.
        const permit = fetch.permitted() catch return false;
        if (permit == 0) return true;
        const chunk = try body.readNow(@intCast(permit)) orelse {
            fetch.finish() catch {};
            return false;
        };
        if (chunk.len == 0) return true;
        fetch.write(chunk) catch return false;
    }
}

/// What `pump` waits for.
fn nextOf(fetch: http.Fetch, body: http.RequestBody) http.FetchError!http.Pollable {
    const room = fetch.permitted() catch 1;
    return if (room == 0) fetch.subscribeWrite() else body.subscribe();
}

/// All at once; a line for each as it answers: which, its status, its bytes.
fn together(request: *http.Request, response: *http.Response, urls: []const u8) http.FetchError!void {
    var fetches: [together_max]http.Fetch = undefined;
    var numbers: [together_max]usize = undefined;
    var count: usize = 0;
    try response.header("content-type", "text/plain");
    try response.begin(200);
    var each = std.mem.tokenizeScalar(u8, urls, ' ');
    var number: usize = 0;
    while (each.next()) |url| : (number += 1) {
        if (count == together_max) break;
        fetches[count] = begin(request, url, false) catch |failure| {
            try response.print("{d} {s}\n", .{ number, why(failure) });
            continue;
        };
        numbers[count] = number;
        count += 1;
    }
    while (count > 0) {
        var pollables: [together_max]http.Pollable = undefined;
        for (fetches[0..count], 0..) |fetch, i| pollables[i] = fetch.subscribe();
        const ready = http.waitAny(pollables[0..count]);
        var i = count;
        while (i > 0) {
            i -= 1;
            if (ready & (@as(u32, 1) << @intCast(i)) == 0) continue;
            try tell(response, numbers[i], fetches[i]);
            fetches[i].close();
            count -= 1;
            fetches[i] = fetches[count];
            numbers[i] = numbers[count];
        }
    }
}

fn tell(response: *http.Response, number: usize, fetch: http.Fetch) http.FetchError!void {
    const answer = fetch.wait() catch |failure| return response.print("{d} {s}\n", .{ number, why(failure) });
    defer answer.close();
    const body = try answer.body();
    defer body.close();
    var bytes: u64 = 0;
    while (body.read() catch return response.print("{d} {s}\n", .{ number, http.errorCodeName() })) |chunk| {
        bytes += chunk.len;
    }
    try response.print("{d} {d} {d}\n", .{ number, answer.status(), bytes });
}

fn oneAfterTheOther(request: *http.Request, response: *http.Response, url: []const u8, times: u64) http.FetchError!void {
    var done: u64 = 0;
    while (done < times) : (done += 1) {
        var fetch = begin(request, url, false) catch |failure|
            return response.text(200, "{d} {s}\n", .{ done, why(failure) });
        defer fetch.close();
        const answer = fetch.wait() catch |failure|
            return response.text(200, "{d} {s}\n", .{ done, why(failure) });
        defer answer.close();
        // One that is let go of early is cancelled, and then nobody knows what it has used.
        const body = try answer.body();
        defer body.close();
        while (body.read() catch |failure|
            return response.text(200, "{d} {s}\n", .{ done, why(failure) })) |_|
        {}
    }
    try response.text(200, "{d}\n", .{done});
}

fn letGo(request: *http.Request, response: *http.Response, url: []const u8) http.FetchError!void {
    var fetch = try begin(request, url, false);
    fetch.close();
    try response.text(200, "let go\n", .{});
    http.wait(request.queryNumber("drop") orelse 0);
}

fn hold(request: *http.Request, response: *http.Response, url: []const u8, count: u64, spin: bool) http.FetchError!void {
    var held: [together_max]http.Fetch = undefined;
    var answers: [together_max]http.Answer = undefined;
    const n: usize = @intCast(@min(count, together_max));
    for (0..n) |i| held[i] = try begin(request, url, false);
    for (0..n) |i| answers[i] = try held[i].wait();
    var sum: u32 = 1;
    while (spin) {
        sum = sum *% 31 +% 7;
        std.mem.doNotOptimizeAway(sum);
    }
    var last = try begin(request, url, false);
    if (request.query("then_read") != null) {
        const body = try answers[0].body();
        while (try body.read()) |_| {}
        body.close();
    }
    if (last.wait()) |answer| {
        try response.text(200, "{d}\n", .{answer.status()});
        answer.close();
    } else |failure| try response.text(200, "{s}\n", .{why(failure)});
    last.close();
    for (0..n) |i| {
        answers[i].close();
        held[i].close();
    }
}

fn keep(request: *http.Request, response: *http.Response, url: []const u8) http.FetchError!void {
    var fetch = try begin(request, url, false);
    kept = try fetch.wait();
    fetch.close();
    try response.text(200, "{d} kept\n", .{kept.?.status()});
}

fn tellKept(response: *http.Response) http.FetchError!void {
    const answer = kept orelse return response.text(200, "nothing\n", .{});
    kept = null;
    defer answer.close();
    const body = answer.body() catch return response.text(200, "closed\n", .{});
    body.close();
    try response.text(200, "open\n", .{});
}
