//! wasi:http 0.2 for Zig workers, spoken directly: a worker is 20-40 lines and a few KB.
//!
//! A component function is, below its types, a core wasm function whose strings are (pointer, length), whose
//! resources are i32 handles, and whose larger results are written to memory the caller points at. Those core
//! functions are declared by hand in `abi` below, and `wasm-tools component new` checks each against the WIT.
//!
//! The rules that hold:
//!  - One request at a time. Everything a request allocates lies in one fixed arena, emptied when the next begins, so
//!    an instance can be used again and again and its memory does not grow.
//!  - Every handle has one owner here and is dropped on every path: children before parents, as WASI demands (a
//!    stream before its body, a pollable before anything else).
//!  - A response is whole only if its body was finished. A handler that fails after the head was sent drops the
//!    body unfinished, and the host resets the connection; one that fails before it traps.

const std = @import("std");

/// Disconnected: the peer went away, in either direction. Rejected: the host refused what it was given.
pub const Error = error{ Disconnected, Rejected };
/// Failed: a request to somebody else did; `last_error_code` says why.
pub const FetchError = Error || error{Failed};
pub const Handler = fn (*Request, *Response) Error!void;

/// The cases of the WIT variant, in its order.
pub const Method = enum(u8) { get, head, post, put, delete, connect, options, trace, patch, other };

// Most of what a request may bring: a head of 128 KiB (a worker asks for a few values of it) and one chunk of its body.
const arena_bytes_max = 256 * 1024;
// As much as a host hands over at once (its window is 64 KiB); asking for more would only cost arena.
const chunk_bytes_max = 64 * 1024;
// `blocking-write-and-flush` takes no more than this in WASI 0.2.
const flush_bytes_max = 4096;

var arena: [arena_bytes_max]u8 align(16) = undefined;
var arena_top: usize = 0;

/// Makes `handler` the worker's answer to every request. Call it in a `comptime` block of the root file.
pub fn serve(comptime handler: Handler) void {
    const entry = struct {
        fn handle(request_handle: i32, outparam: i32) callconv(.c) void {
            arena_top = 0;
            var request = Request.init(request_handle);
            var response = Response{ .outparam = outparam, .bodyless = request.method == .head };
            const result = handler(&request, &response);
            request.deinit();
            if (result) |_| response.finish() else |_| {
                if (response.head_pending) @trap();
                response.abandon();
            }
        }
    };
    @export(&entry.handle, .{ .name = "wasi:http/incoming-handler@0.2.10#handle" });
    @export(&reallocate, .{ .name = "cabi_realloc" });
}

/// Where the host puts what it returns. A request that needs more than the arena is one no worker here is made for.
fn reallocate(old: ?[*]u8, old_bytes: usize, alignment: usize, bytes: usize) callconv(.c) ?[*]u8 {
    const start = (arena_top + alignment - 1) & ~(alignment - 1);
    if (start > arena.len or bytes > arena.len - start) @trap();
    arena_top = start + bytes;
    if (old) |from| @memcpy(arena[start..][0..@min(old_bytes, bytes)], from[0..@min(old_bytes, bytes)]);
    return arena[start..].ptr;
}

pub const Request = struct {
    handle: i32,
    method: Method,
    /// Path and query as the client sent them, "/" when there is none. Valid until the handler returns.
    target: []const u8,

    fn init(handle: i32) Request {
        var method: abi.Variant = undefined;
        abi.@"[method]incoming-request.method"(handle, &method);
        var target: abi.Variant = undefined;
        abi.@"[method]incoming-request.path-with-query"(handle, &target);
        return .{
            .handle = handle,
            .method = @enumFromInt(method.case),
            .target = if (target.case == 1) target.bytes() else "/",
        };
    }

    fn deinit(self: *Request) void {
        abi.@"[resource-drop]incoming-request"(self.handle);
    }

    pub fn path(self: Request) []const u8 {
        return self.target[0 .. std.mem.findScalar(u8, self.target, '?') orelse self.target.len];
    }

    /// The value of a query parameter as it stands (not percent-decoded), "" for one without a value, or null.
    pub fn query(self: Request, name: []const u8) ?[]const u8 {
        const start = std.mem.findScalar(u8, self.target, '?') orelse return null;
        var pairs = std.mem.splitScalar(u8, self.target[start + 1 ..], '&');
        while (pairs.next()) |pair| {
            const equals = std.mem.findScalar(u8, pair, '=') orelse pair.len;
            if (std.mem.eql(u8, pair[0..equals], name)) return pair[@min(equals + 1, pair.len)..];
        }
        return null;
    }

    /// A query parameter as a number, or null when it is absent or is none.
    pub fn queryNumber(self: Request, name: []const u8) ?u64 {
        return std.fmt.parseInt(u64, self.query(name) orelse return null, 10) catch null;
    }

    /// Whom the request is for, "host" or "host:port"; "" when it does not say. Valid until the handler returns.
    pub fn authority(self: Request) []const u8 {
        var named: abi.Variant = undefined;
        abi.@"[method]incoming-request.authority"(self.handle, &named);
        return if (named.case == 1) named.bytes() else "";
    }

    /// The first value of a header, or null. Valid until the handler returns.
    pub fn header(self: Request, name: []const u8) ?[]const u8 {
        return firstValue(abi.@"[method]incoming-request.headers"(self.handle), name);
    }

    /// Takes the body; a request has it once. Whoever takes it closes it.
    pub fn body(self: Request) Error!RequestBody {
        const incoming = try abi.handleOf(abi.@"[method]incoming-request.consume", self.handle);
        errdefer abi.@"[resource-drop]incoming-body"(incoming);
        const stream = try abi.handleOf(abi.@"[method]incoming-body.stream", incoming);
        return .{ .incoming = incoming, .stream = stream, .arena_mark = arena_top };
    }
};

/// The first value of a field, or null. Takes `fields`.
fn firstValue(fields: i32, name: []const u8) ?[]const u8 {
    defer abi.@"[resource-drop]fields"(fields);
    var values: abi.List = undefined;
    abi.@"[method]fields.get"(fields, name.ptr, name.len, &values);
    if (values.len == 0) return null;
    const first: *const abi.List = @ptrFromInt(values.ptr);
    return first.bytes();
}

pub const RequestBody = Body(.of_request);
pub const AnswerBody = Body(.of_answer);

/// A body that is read. That of an answer has a reason when it breaks off: `last_error_code`.
fn Body(comptime whose: abi.Whose) type {
    return struct {
        incoming: i32,
        stream: i32,
        arena_mark: usize,

        const Self = @This();

        /// Waits for the next bytes; null is the end. A chunk is valid until the next call, and so is anything else that
        /// came from the host since the body was taken: that is what keeps 100 MB in 64 KiB.
        pub fn read(self: Self) Error!?[]const u8 {
            while (true) {
                arena_top = self.arena_mark;
                var result: abi.StreamResult = undefined;
                abi.@"[method]input-stream.blocking-read"(self.stream, chunk_bytes_max, &result);
                if (result.failed()) return if (result.closed(whose)) null else error.Disconnected;
                if (result.b != 0) return result.bytes();
            }
        }

        /// What is here now, up to `bytes_max`; empty when nothing is, null at the end. Valid as with `read`.
        pub fn readNow(self: Self, bytes_max: usize) Error!?[]const u8 {
            arena_top = self.arena_mark;
            var result: abi.StreamResult = undefined;
            abi.@"[method]input-stream.read"(self.stream, @min(bytes_max, chunk_bytes_max), &result);
            if (result.failed()) return if (result.closed(whose)) null else error.Disconnected;
            return result.bytes();
        }

        /// Ready when `readNow` has something to tell.
        pub fn subscribe(self: Self) Pollable {
            return .{ .handle = abi.@"[method]input-stream.subscribe"(self.stream) };
        }

        pub fn close(self: Self) void {
            abi.@"[resource-drop]input-stream"(self.stream);
            abi.@"[resource-drop]incoming-body"(self.incoming);
        }
    };
}

pub const Response = struct {
    outparam: i32,
    /// The answer to a HEAD request is a head alone: what the handler writes is dropped here.
    bodyless: bool,
    head_pending: bool = true,
    fields: ?i32 = null,
    outgoing: i32 = 0,
    stream: i32 = 0,

    /// Adds a header; before `begin` only.
    pub fn header(self: *Response, name: []const u8, value: []const u8) Error!void {
        if (self.fields == null) self.fields = abi.@"[constructor]fields"();
        var result: [2]u8 = undefined;
        abi.@"[method]fields.append"(self.fields.?, name.ptr, name.len, value.ptr, value.len, &result);
        if (result[0] != 0) return error.Rejected;
    }

    /// Sends the head; after it the client sees this answer and no other.
    pub fn begin(self: *Response, status: u16) Error!void {
        const response = abi.@"[constructor]outgoing-response"(self.fields orelse abi.@"[constructor]fields"());
        self.fields = null;
        if (status != 200 and abi.@"[method]outgoing-response.set-status-code"(response, status) != 0) @trap();
        self.outgoing = abi.handleOf(abi.@"[method]outgoing-response.body", response) catch @trap();
        abi.@"[static]response-outparam.set"(self.outparam, 0, response, 0, 0, 0, 0, 0, 0);
        self.head_pending = false;
        self.stream = abi.handleOf(abi.@"[method]outgoing-body.write", self.outgoing) catch @trap();
    }

    /// A whole answer of one short text.
    pub fn text(self: *Response, status: u16, comptime format: []const u8, values: anytype) Error!void {
        try self.header("content-type", "text/plain");
        try self.begin(status);
        try self.print(format, values);
    }

    pub fn print(self: *Response, comptime format: []const u8, values: anytype) Error!void {
        // A line of text with a request's path (16 KiB at most) in it.
        var line: [17 * 1024]u8 = undefined;
        try self.write(std.fmt.bufPrint(&line, format, values) catch return error.Rejected);
    }

    /// Writes all of `bytes`, waiting while the client is slow, and leaves nothing behind in a buffer.
    pub fn write(self: *Response, bytes: []const u8) Error!void {
        if (self.bodyless or bytes.len == 0) return;
        var result: abi.StreamResult = undefined;
        if (bytes.len <= flush_bytes_max) {
            abi.@"[method]output-stream.blocking-write-and-flush"(self.stream, bytes.ptr, bytes.len, &result);
            return result.check(.of_request);
        }
        var rest = bytes;
        while (rest.len > 0) {
            const piece = rest[0..@intCast(@min(rest.len, try self.permitted()))];
            abi.@"[method]output-stream.write"(self.stream, piece.ptr, piece.len, &result);
            try result.check(.of_request);
            rest = rest[piece.len..];
        }
        abi.@"[method]output-stream.flush"(self.stream, &result);
        return result.check(.of_request);
    }

    /// How many bytes the host takes now; waits until that is not zero.
    fn permitted(self: *Response) Error!u64 {
        while (true) {
            var permit: abi.PermitResult = undefined;
            abi.@"[method]output-stream.check-write"(self.stream, &permit);
            const bytes = try permit.value(.of_request);
            if (bytes > 0) return bytes;
            blockOn(abi.@"[method]output-stream.subscribe"(self.stream));
        }
    }

    fn finish(self: *Response) void {
        if (self.head_pending) return self.abandon();
        abi.@"[resource-drop]output-stream"(self.stream);
        // The result says whether the client took it all; there is nobody left to tell.
        var ignored: [5]u64 = undefined;
        abi.@"[static]outgoing-body.finish"(self.outgoing, 0, 0, &ignored);
    }

    fn abandon(self: *Response) void {
        if (self.head_pending) {
            if (self.fields) |fields| abi.@"[resource-drop]fields"(fields);
            abi.@"[resource-drop]response-outparam"(self.outparam);
        } else {
            abi.@"[resource-drop]output-stream"(self.stream);
            abi.@"[resource-drop]outgoing-body"(self.outgoing);
        }
    }
};

/// A request to somebody else. `send` it, write its body, `finish` that, `wait` for the answer, read and `close` that.
/// One that is dropped before the end is cancelled.
pub const Fetch = struct {
    future: i32,
    outgoing: ?i32,
    stream: i32,

    pub const Options = struct {
        method: Method = .get,
        /// "http://host:port/path?query" or https.
        url: []const u8,
        headers: []const [2][]const u8 = &.{},
        /// Whether a body follows; without it the request is complete.
        body: bool = false,
        connect_timeout_ms: ?u64 = null,
        first_byte_timeout_ms: ?u64 = null,
        between_bytes_timeout_ms: ?u64 = null,

        /// `request-options`, or null when none of them is asked for.
        fn timeouts(self: Options) ?i32 {
            if (self.connect_timeout_ms == null and self.first_byte_timeout_ms == null and
                self.between_bytes_timeout_ms == null) return null;
            const wishes = abi.@"[constructor]request-options"();
            setTimeout(abi.@"[method]request-options.set-connect-timeout", wishes, self.connect_timeout_ms);
            setTimeout(abi.@"[method]request-options.set-first-byte-timeout", wishes, self.first_byte_timeout_ms);
            setTimeout(abi.@"[method]request-options.set-between-bytes-timeout", wishes, self.between_bytes_timeout_ms);
            return wishes;
        }
    };

    /// Begins the request. Failed: `last_error_code` says why.
    pub fn send(options: Options) FetchError!Fetch {
        const url = try Url.parse(options.url);
        const fields = abi.@"[constructor]fields"();
        for (options.headers) |header| {
            var result: [2]u8 = undefined;
            abi.@"[method]fields.append"(fields, header[0].ptr, header[0].len, header[1].ptr, header[1].len, &result);
            if (result[0] != 0) {
                abi.@"[resource-drop]fields"(fields);
                return error.Rejected;
            }
        }
        const request = abi.@"[constructor]outgoing-request"(fields);
        var sent = false;
        defer if (!sent) abi.@"[resource-drop]outgoing-request"(request);
        const a, const p = .{ url.authority, url.path };
        // What a new request already is, GET without time limits, is not said again.
        if ((options.method != .get and
            abi.@"[method]outgoing-request.set-method"(request, @intFromEnum(options.method), 0, 0) != 0) or
            abi.@"[method]outgoing-request.set-scheme"(request, 1, @intFromBool(url.tls), 0, 0) != 0 or
            abi.@"[method]outgoing-request.set-authority"(request, 1, a.ptr, a.len) != 0 or
            abi.@"[method]outgoing-request.set-path-with-query"(request, 1, p.ptr, p.len) != 0) return error.Rejected;
        const wishes = options.timeouts();

        var fetch = Fetch{ .future = 0, .outgoing = null, .stream = 0 };
        if (options.body) {
            fetch.outgoing = abi.handleOf(abi.@"[method]outgoing-request.body", request) catch |failure| {
                if (wishes) |given| abi.@"[resource-drop]request-options"(given);
                return failure;
            };
            fetch.stream = abi.handleOf(abi.@"[method]outgoing-body.write", fetch.outgoing.?) catch @trap();
        }
        sent = true; // handed over, whatever comes of it
        var result: abi.HandledResult = undefined;
        abi.handle(request, @intFromBool(wishes != null), wishes orelse 0, &result);
        if (result.case == 0) {
            fetch.future = result.payload.handle;
            return fetch;
        }
        last_error_code = result.payload.code.case;
        fetch.dropBody();
        return error.Failed;
    }

    /// How many bytes of body the host takes now without waiting.
    pub fn permitted(self: Fetch) Error!u64 {
        var permit: abi.PermitResult = undefined;
        abi.@"[method]output-stream.check-write"(self.stream, &permit);
        return permit.value(.of_answer);
    }

    /// Writes all of `bytes`, waiting while the origin is slow.
    pub fn write(self: Fetch, bytes: []const u8) Error!void {
        var rest = bytes;
        while (rest.len > 0) {
            const permit = try self.permitted();
            if (permit == 0) {
                self.subscribeWrite().block();
                continue;
            }
            const piece = rest[0..@intCast(@min(rest.len, permit))];
            var result: abi.StreamResult = undefined;
            abi.@"[method]output-stream.write"(self.stream, piece.ptr, piece.len, &result);
            try result.check(.of_answer);
            rest = rest[piece.len..];
        }
    }

    /// Ready when `permitted` is not zero, or will never be anything else.
    pub fn subscribeWrite(self: Fetch) Pollable {
        return .{ .handle = abi.@"[method]output-stream.subscribe"(self.stream) };
    }

    /// The body is complete.
    pub fn finish(self: *Fetch) FetchError!void {
        const outgoing = self.outgoing orelse return;
        self.outgoing = null;
        abi.@"[resource-drop]output-stream"(self.stream);
        var result: abi.FinishedResult = undefined;
        abi.@"[static]outgoing-body.finish"(outgoing, 0, 0, @ptrCast(&result));
        if (result.case == 0) return;
        last_error_code = result.code.case;
        return error.Failed;
    }

    /// Ready when `answer` has something to tell.
    pub fn subscribe(self: Fetch) Pollable {
        return .{ .handle = abi.@"[method]future-incoming-response.subscribe"(self.future) };
    }

    /// The answer, or null when it is not here yet. Once it is, ask no more.
    pub fn answer(self: Fetch) FetchError!?Answer {
        var result: abi.AnsweredResult = undefined;
        abi.@"[method]future-incoming-response.get"(self.future, &result);
        if (result.some == 0) return null;
        if (result.asked_twice != 0) return error.Rejected;
        if (result.case == 0) return .{ .handle = result.payload.handle };
        last_error_code = result.payload.code.case;
        return error.Failed;
    }

    /// Waits for the answer.
    pub fn wait(self: Fetch) FetchError!Answer {
        while (true) {
            self.subscribe().block();
            if (try self.answer()) |here| return here;
        }
    }

    /// Ends the request; an answer that was taken is not touched.
    pub fn close(self: *Fetch) void {
        self.dropBody();
        abi.@"[resource-drop]future-incoming-response"(self.future);
    }

    fn dropBody(self: *Fetch) void {
        const outgoing = self.outgoing orelse return;
        self.outgoing = null;
        abi.@"[resource-drop]output-stream"(self.stream);
        abi.@"[resource-drop]outgoing-body"(outgoing);
    }

    fn setTimeout(comptime set: anytype, wishes: i32, ms: ?u64) void {
        if (ms) |value| _ = set(wishes, 1, @intCast(value *| std.time.ns_per_ms));
    }
};

/// The head of what somebody else answered, and its body.
pub const Answer = struct {
    handle: i32,

    pub fn status(self: Answer) u16 {
        return @intCast(abi.@"[method]incoming-response.status"(self.handle));
    }

    /// The first value of a header, or null. Valid until the next body is read.
    pub fn header(self: Answer, name: []const u8) ?[]const u8 {
        return firstValue(abi.@"[method]incoming-response.headers"(self.handle), name);
    }

    /// Takes the body; an answer has it once. Whoever takes it closes it.
    pub fn body(self: Answer) Error!AnswerBody {
        const incoming = try abi.handleOf(abi.@"[method]incoming-response.consume", self.handle);
        errdefer abi.@"[resource-drop]incoming-body"(incoming);
        const stream = try abi.handleOf(abi.@"[method]incoming-body.stream", incoming);
        return .{ .incoming = incoming, .stream = stream, .arena_mark = arena_top };
    }

    pub fn close(self: Answer) void {
        abi.@"[resource-drop]incoming-response"(self.handle);
    }
};

const Url = struct {
    tls: bool,
    authority: []const u8,
    path: []const u8,

    fn parse(url: []const u8) Error!Url {
        const tls = std.mem.startsWith(u8, url, "https://");
        if (!tls and !std.mem.startsWith(u8, url, "http://")) return error.Rejected;
        const rest = url[if (tls) 8 else 7..];
        const end = std.mem.findAny(u8, rest, "/?") orelse rest.len;
        return .{ .tls = tls, .authority = rest[0..end], .path = rest[end..] };
    }
};

/// Something to wait for; dropped by whoever waits.
pub const Pollable = struct {
    handle: i32,

    pub fn block(self: Pollable) void {
        blockOn(self.handle);
    }
};

/// Waits until one of them is ready, and tells which are: a bit for each. Drops them all. 32 at most.
pub fn waitAny(pollables: []const Pollable) u32 {
    const mark = arena_top;
    var found: abi.List = undefined;
    abi.poll(@ptrCast(pollables.ptr), pollables.len, &found);
    var ready: u32 = 0;
    for (@as([*]const u32, @ptrFromInt(found.ptr))[0..found.len]) |index| ready |= @as(u32, 1) << @intCast(index);
    for (pollables) |pollable| abi.@"[resource-drop]pollable"(pollable.handle);
    arena_top = mark;
    return ready;
}

/// Why the last `error.Failed` was one, or the last stream of an answer broke off: a case of error-code by its number.
pub var last_error_code: u8 = 0;

/// The cases of the WIT variant, in its order.
const error_code_names = [_][]const u8{
    "DNS-timeout",                      "DNS-error",                       "destination-not-found",
    "destination-unavailable",          "destination-IP-prohibited",       "destination-IP-unroutable",
    "connection-refused",               "connection-terminated",           "connection-timeout",
    "connection-read-timeout",          "connection-write-timeout",        "connection-limit-reached",
    "TLS-protocol-error",               "TLS-certificate-error",           "TLS-alert-received",
    "HTTP-request-denied",              "HTTP-request-length-required",    "HTTP-request-body-size",
    "HTTP-request-method-invalid",      "HTTP-request-URI-invalid",        "HTTP-request-URI-too-long",
    "HTTP-request-header-section-size", "HTTP-request-header-size",        "HTTP-request-trailer-section-size",
    "HTTP-request-trailer-size",        "HTTP-response-incomplete",        "HTTP-response-header-section-size",
    "HTTP-response-header-size",        "HTTP-response-body-size",         "HTTP-response-trailer-section-size",
    "HTTP-response-trailer-size",       "HTTP-response-transfer-coding",   "HTTP-response-content-coding",
    "HTTP-response-timeout",            "HTTP-upgrade-failed",             "HTTP-protocol-error",
    "loop-detected",                    "configuration-error",             "internal-error",
};

pub fn errorCodeName() []const u8 {
    return error_code_names[last_error_code];
}

/// Writes to the worker's log: what its owner reads beside the request, and its tail worker hears. What is beyond the
/// limit of a request is dropped by the host.
pub fn log(bytes: []const u8) Error!void {
    const stream = abi.@"get-stdout"();
    defer abi.@"[resource-drop]output-stream"(stream);
    var rest = bytes;
    while (rest.len > 0) {
        const piece = rest[0..@min(rest.len, flush_bytes_max)];
        var result: abi.StreamResult = undefined;
        abi.@"[method]output-stream.blocking-write-and-flush"(stream, piece.ptr, piece.len, &result);
        try result.check(.of_request);
        rest = rest[piece.len..];
    }
}

/// Lets time pass; the worker uses no CPU meanwhile.
pub fn wait(ms: u64) void {
    blockOn(abi.@"subscribe-duration"(ms * std.time.ns_per_ms));
}

fn blockOn(pollable: i32) void {
    abi.@"[method]pollable.block"(pollable);
    abi.@"[resource-drop]pollable"(pollable);
}

/// The core functions behind wasi:http, wasi:io and wasi:clocks, and the memory layouts of their results.
const abi = struct {
    const List = extern struct {
        ptr: usize,
        len: usize,

        fn bytes(self: List) []const u8 {
            return @as([*]const u8, @ptrFromInt(self.ptr))[0..self.len];
        }
    };

    /// A variant, or an option, whose payload is a string at most.
    const Variant = extern struct {
        case: u8,
        list: List,

        fn bytes(self: Variant) []const u8 {
            return self.list.bytes();
        }
    };

    /// result<own<resource>, _>
    const HandleResult = extern struct { case: u8, handle: i32 };

    /// result<list<u8> or nothing, stream-error>. On failure `a` holds the case of stream-error (in its low byte) and
    /// `b` the handle of the error, which belongs to us.
    const StreamResult = extern struct {
        case: u8,
        a: usize,
        b: usize,

        fn failed(self: StreamResult) bool {
            return self.case != 0;
        }

        /// Which failure: true is the end of the stream. Takes the error; ask once.
        fn closed(self: StreamResult, comptime whose: Whose) bool {
            return streamClosed(whose, @truncate(self.a), self.b);
        }

        fn check(self: StreamResult, comptime whose: Whose) Error!void {
            if (self.failed()) {
                _ = self.closed(whose);
                return error.Disconnected;
            }
        }

        fn bytes(self: StreamResult) []const u8 {
            return (List{ .ptr = self.a, .len = self.b }).bytes();
        }
    };

    /// result<u64, stream-error>
    const PermitResult = extern struct {
        case: u8,
        payload: u64 align(8),

        fn value(self: PermitResult, comptime whose: Whose) Error!u64 {
            if (self.case == 0) return self.payload;
            _ = streamClosed(whose, @truncate(self.payload), @intCast(self.payload >> 32));
            return error.Disconnected;
        }
    };

    /// error-code: 39 cases, of which only the number is looked at.
    const ErrorCode = extern struct { case: u8, payload: [3]u64 align(8) };

    /// result<own<future-incoming-response>, error-code>
    const HandledResult = extern struct { case: u8, payload: extern union { handle: i32, code: ErrorCode } align(8) };

    /// option<error-code>
    const CodeResult = extern struct { some: u8, code: ErrorCode };

    /// result<_, error-code>
    const FinishedResult = extern struct { case: u8, code: ErrorCode };

    /// option<result<result<own<incoming-response>, error-code>>>
    const AnsweredResult = extern struct {
        some: u8,
        asked_twice: u8 align(8),
        case: u8 align(8),
        payload: extern union { handle: i32, code: ErrorCode } align(8),
    };

    /// Whose stream it is: the failure of one to or from somebody else has a reason.
    const Whose = enum { of_request, of_answer };

    fn streamClosed(comptime whose: Whose, case: u8, failure: usize) bool {
        if (case == 1) return true;
        const handle_of_error: i32 = @bitCast(@as(u32, @intCast(failure)));
        if (whose == .of_answer) {
            var code: CodeResult = undefined;
            @"http-error-code"(handle_of_error, &code);
            if (code.some != 0) last_error_code = code.code.case;
        }
        @"[resource-drop]error"(handle_of_error);
        return false;
    }

    fn handleOf(comptime function: anytype, self: i32) Error!i32 {
        var result: HandleResult = undefined;
        function(self, &result);
        return if (result.case == 0) result.handle else error.Rejected;
    }

    extern "wasi:http/types@0.2.10" fn @"[constructor]fields"() i32;
    extern "wasi:http/types@0.2.10" fn @"[method]fields.get"(i32, [*]const u8, usize, *List) void;
    extern "wasi:http/types@0.2.10" fn @"[method]fields.append"(i32, [*]const u8, usize, [*]const u8, usize, *[2]u8) void;
    extern "wasi:http/types@0.2.10" fn @"[resource-drop]fields"(i32) void;
    extern "wasi:http/types@0.2.10" fn @"[method]incoming-request.method"(i32, *Variant) void;
    extern "wasi:http/types@0.2.10" fn @"[method]incoming-request.path-with-query"(i32, *Variant) void;
    extern "wasi:http/types@0.2.10" fn @"[method]incoming-request.authority"(i32, *Variant) void;
    extern "wasi:http/types@0.2.10" fn @"[method]incoming-request.headers"(i32) i32;
    extern "wasi:http/types@0.2.10" fn @"[method]incoming-request.consume"(i32, *HandleResult) void;
    extern "wasi:http/types@0.2.10" fn @"[resource-drop]incoming-request"(i32) void;
    extern "wasi:http/types@0.2.10" fn @"[method]incoming-body.stream"(i32, *HandleResult) void;
    extern "wasi:http/types@0.2.10" fn @"[resource-drop]incoming-body"(i32) void;
    extern "wasi:http/types@0.2.10" fn @"[constructor]outgoing-response"(i32) i32;
    extern "wasi:http/types@0.2.10" fn @"[method]outgoing-response.set-status-code"(i32, i32) i32;
    extern "wasi:http/types@0.2.10" fn @"[method]outgoing-response.body"(i32, *HandleResult) void;
    // (outparam, ok = 0, response, and the widest payload of error-code, unused)
    extern "wasi:http/types@0.2.10" fn @"[static]response-outparam.set"(i32, i32, i32, i32, i64, i32, i32, i32, i32) void;
    extern "wasi:http/types@0.2.10" fn @"[resource-drop]response-outparam"(i32) void;
    extern "wasi:http/types@0.2.10" fn @"[method]outgoing-body.write"(i32, *HandleResult) void;
    // (body, no trailers = 0, 0, and room for result<_, error-code>: 40 bytes)
    extern "wasi:http/types@0.2.10" fn @"[static]outgoing-body.finish"(i32, i32, i32, *[5]u64) void;
    extern "wasi:http/types@0.2.10" fn @"[resource-drop]outgoing-body"(i32) void;
    extern "wasi:http/types@0.2.10" fn @"[constructor]outgoing-request"(i32) i32;
    // (request, case of method, and the name of another, unused)
    extern "wasi:http/types@0.2.10" fn @"[method]outgoing-request.set-method"(i32, i32, usize, usize) i32;
    // (request, some = 1, case of scheme, and the name of another, unused)
    extern "wasi:http/types@0.2.10" fn @"[method]outgoing-request.set-scheme"(i32, i32, i32, usize, usize) i32;
    extern "wasi:http/types@0.2.10" fn @"[method]outgoing-request.set-authority"(i32, i32, [*]const u8, usize) i32;
    extern "wasi:http/types@0.2.10" fn @"[method]outgoing-request.set-path-with-query"(i32, i32, [*]const u8, usize) i32;
    extern "wasi:http/types@0.2.10" fn @"[method]outgoing-request.body"(i32, *HandleResult) void;
    extern "wasi:http/types@0.2.10" fn @"[resource-drop]outgoing-request"(i32) void;
    extern "wasi:http/types@0.2.10" fn @"[constructor]request-options"() i32;
    extern "wasi:http/types@0.2.10" fn @"[method]request-options.set-connect-timeout"(i32, i32, i64) i32;
    extern "wasi:http/types@0.2.10" fn @"[method]request-options.set-first-byte-timeout"(i32, i32, i64) i32;
    extern "wasi:http/types@0.2.10" fn @"[method]request-options.set-between-bytes-timeout"(i32, i32, i64) i32;
    extern "wasi:http/types@0.2.10" fn @"[resource-drop]request-options"(i32) void;
    extern "wasi:http/types@0.2.10" fn @"[method]future-incoming-response.subscribe"(i32) i32;
    extern "wasi:http/types@0.2.10" fn @"[method]future-incoming-response.get"(i32, *AnsweredResult) void;
    extern "wasi:http/types@0.2.10" fn @"[resource-drop]future-incoming-response"(i32) void;
    extern "wasi:http/types@0.2.10" fn @"[method]incoming-response.status"(i32) i32;
    extern "wasi:http/types@0.2.10" fn @"[method]incoming-response.headers"(i32) i32;
    extern "wasi:http/types@0.2.10" fn @"[method]incoming-response.consume"(i32, *HandleResult) void;
    extern "wasi:http/types@0.2.10" fn @"[resource-drop]incoming-response"(i32) void;
    extern "wasi:http/types@0.2.10" fn @"http-error-code"(i32, *CodeResult) void;
    extern "wasi:http/outgoing-handler@0.2.10" fn handle(i32, i32, i32, *HandledResult) void;
    extern "wasi:io/streams@0.2.10" fn @"[method]input-stream.read"(i32, u64, *StreamResult) void;
    extern "wasi:io/streams@0.2.10" fn @"[method]input-stream.subscribe"(i32) i32;
    extern "wasi:io/streams@0.2.10" fn @"[method]input-stream.blocking-read"(i32, u64, *StreamResult) void;
    extern "wasi:io/streams@0.2.10" fn @"[resource-drop]input-stream"(i32) void;
    extern "wasi:io/streams@0.2.10" fn @"[method]output-stream.check-write"(i32, *PermitResult) void;
    extern "wasi:io/streams@0.2.10" fn @"[method]output-stream.write"(i32, [*]const u8, usize, *StreamResult) void;
    extern "wasi:io/streams@0.2.10" fn @"[method]output-stream.blocking-write-and-flush"(i32, [*]const u8, usize, *StreamResult) void;
    extern "wasi:io/streams@0.2.10" fn @"[method]output-stream.flush"(i32, *StreamResult) void;
    extern "wasi:io/streams@0.2.10" fn @"[method]output-stream.subscribe"(i32) i32;
    extern "wasi:io/streams@0.2.10" fn @"[resource-drop]output-stream"(i32) void;
    extern "wasi:io/error@0.2.10" fn @"[resource-drop]error"(i32) void;
    // (pollables, count, and room for the list of indices)
    extern "wasi:io/poll@0.2.10" fn poll([*]const i32, usize, *List) void;
    extern "wasi:io/poll@0.2.10" fn @"[method]pollable.block"(i32) void;
    extern "wasi:io/poll@0.2.10" fn @"[resource-drop]pollable"(i32) void;
    extern "wasi:cli/stdout@0.2.10" fn @"get-stdout"() i32;
    extern "wasi:clocks/monotonic-clock@0.2.10" fn @"subscribe-duration"(u64) i32;
};
