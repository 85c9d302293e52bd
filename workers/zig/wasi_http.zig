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

    /// The first value of a header, or null. Valid until the handler returns.
    pub fn header(self: Request, name: []const u8) ?[]const u8 {
        const fields = abi.@"[method]incoming-request.headers"(self.handle);
        defer abi.@"[resource-drop]fields"(fields);
        var values: abi.List = undefined;
        abi.@"[method]fields.get"(fields, name.ptr, name.len, &values);
        if (values.len == 0) return null;
        const first: *const abi.List = @ptrFromInt(values.ptr);
        return first.bytes();
    }

    /// Takes the body; a request has it once. Whoever takes it closes it.
    pub fn body(self: Request) Error!RequestBody {
        const incoming = try abi.handleOf(abi.@"[method]incoming-request.consume", self.handle);
        errdefer abi.@"[resource-drop]incoming-body"(incoming);
        const stream = try abi.handleOf(abi.@"[method]incoming-body.stream", incoming);
        return .{ .incoming = incoming, .stream = stream, .arena_mark = arena_top };
    }
};

pub const RequestBody = struct {
    incoming: i32,
    stream: i32,
    arena_mark: usize,

    /// Waits for the next bytes; null is the end. A chunk is valid until the next call, and so is anything else that
    /// came from the host since the body was taken: that is what keeps 100 MB in 64 KiB.
    pub fn read(self: RequestBody) Error!?[]const u8 {
        while (true) {
            arena_top = self.arena_mark;
            var result: abi.StreamResult = undefined;
            abi.@"[method]input-stream.blocking-read"(self.stream, chunk_bytes_max, &result);
            if (result.failed()) return if (result.closed()) null else error.Disconnected;
            if (result.b != 0) return result.bytes();
        }
    }

    pub fn close(self: RequestBody) void {
        abi.@"[resource-drop]input-stream"(self.stream);
        abi.@"[resource-drop]incoming-body"(self.incoming);
    }
};

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
            return result.check();
        }
        var rest = bytes;
        while (rest.len > 0) {
            const piece = rest[0..@intCast(@min(rest.len, try self.permitted()))];
            abi.@"[method]output-stream.write"(self.stream, piece.ptr, piece.len, &result);
            try result.check();
            rest = rest[piece.len..];
        }
        abi.@"[method]output-stream.flush"(self.stream, &result);
        return result.check();
    }

    /// How many bytes the host takes now; waits until that is not zero.
    fn permitted(self: *Response) Error!u64 {
        while (true) {
            var permit: abi.PermitResult = undefined;
            abi.@"[method]output-stream.check-write"(self.stream, &permit);
            const bytes = try permit.value();
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
        fn closed(self: StreamResult) bool {
            return streamClosed(@truncate(self.a), self.b);
        }

        fn check(self: StreamResult) Error!void {
            if (self.failed()) {
                _ = self.closed();
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

        fn value(self: PermitResult) Error!u64 {
            if (self.case == 0) return self.payload;
            _ = streamClosed(@truncate(self.payload), @intCast(self.payload >> 32));
            return error.Disconnected;
        }
    };

    fn streamClosed(case: u8, failure: usize) bool {
        if (case == 1) return true;
        @"[resource-drop]error"(@bitCast(@as(u32, @intCast(failure))));
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
    extern "wasi:io/streams@0.2.10" fn @"[method]input-stream.blocking-read"(i32, u64, *StreamResult) void;
    extern "wasi:io/streams@0.2.10" fn @"[resource-drop]input-stream"(i32) void;
    extern "wasi:io/streams@0.2.10" fn @"[method]output-stream.check-write"(i32, *PermitResult) void;
    extern "wasi:io/streams@0.2.10" fn @"[method]output-stream.write"(i32, [*]const u8, usize, *StreamResult) void;
    extern "wasi:io/streams@0.2.10" fn @"[method]output-stream.blocking-write-and-flush"(i32, [*]const u8, usize, *StreamResult) void;
    extern "wasi:io/streams@0.2.10" fn @"[method]output-stream.flush"(i32, *StreamResult) void;
    extern "wasi:io/streams@0.2.10" fn @"[method]output-stream.subscribe"(i32) i32;
    extern "wasi:io/streams@0.2.10" fn @"[resource-drop]output-stream"(i32) void;
    extern "wasi:io/error@0.2.10" fn @"[resource-drop]error"(i32) void;
    extern "wasi:io/poll@0.2.10" fn @"[method]pollable.block"(i32) void;
    extern "wasi:io/poll@0.2.10" fn @"[resource-drop]pollable"(i32) void;
    extern "wasi:clocks/monotonic-clock@0.2.10" fn @"subscribe-duration"(u64) i32;
};
