//! A tail worker: it hears of each request of the platform once, when all of it is over, and writes a line for each
//! stage to its own log: who, how it ended, what it took, and what it was asked. What a stage calls is indented.
const std = @import("std");
const http = @import("wasi_http");

/// What there may be to hear of one request. A stage is less than a KiB without its log, and there are 32 at most.
const heard_bytes_max = 1024 * 1024;
// What was read of it: strings stay where they are, so this is objects and lists.
const parsed_bytes_max = 1024 * 1024;
// A URL is cut: the trace has it whole.
const url_bytes_max = 120;

/// Of what a tail worker gets for a stage, what is of use here.
const Stage = struct {
    scriptName: ?[]const u8,
    dispatchNamespace: ?[]const u8,
    outcome: []const u8,
    cpuTime: Number,
    event: ?struct {
        request: struct { method: []const u8, url: []const u8 },
        response: ?struct { status: Number },
    },
    logs: []const struct {},
    everwarm: struct { stage: []const u8, parent: ?[]const u8 },
};

/// A number as it is written: reading it as one, to print it again, is most of what a JSON reader weighs.
const Number = struct {
    text: []const u8,

    pub fn jsonParse(allocator: std.mem.Allocator, source: anytype, options: std.json.ParseOptions) !Number {
        return switch (try source.nextAllocMax(allocator, .alloc_if_needed, options.max_value_len.?)) {
            inline .number, .allocated_number => |text| .{ .text = text },
            else => error.UnexpectedToken,
        };
    }
};

var heard: [heard_bytes_max]u8 = undefined;
var parsed: [parsed_bytes_max]u8 = undefined;

comptime {
    http.serve(handle);
}

fn handle(request: *http.Request, response: *http.Response) http.Error!void {
    const body = try request.body();
    defer body.close();
    var bytes: usize = 0;
    while (try body.read()) |chunk| {
        if (chunk.len > heard.len - bytes) return refuse(response, 413, "more than an audit reads\n");
        @memcpy(heard[bytes..][0..chunk.len], chunk);
        bytes += chunk.len;
    }
    var memory = std.heap.FixedBufferAllocator.init(&parsed);
    const stages = std.json.parseFromSliceLeaky([]const Stage, memory.allocator(), heard[0..bytes], .{
        .ignore_unknown_fields = true,
    }) catch return refuse(response, 400, "not what a tail worker gets\n");
    for (stages) |stage| try tell(stage, depthOf(stages, stage));
    try response.text(200, "heard of {d} stages\n", .{stages.len});
}

fn refuse(response: *http.Response, status: u16, comptime why: []const u8) http.Error!void {
    try http.log(why);
    try response.text(status, why, .{});
}

fn tell(stage: Stage, depth: usize) http.Error!void {
    var line: [512]u8 = undefined;
    var writer = std.Io.Writer.fixed(&line);
    // What has no room in the line is left out.
    write(&writer, stage, depth) catch {};
    line[@min(writer.end, line.len - 1)] = '\n';
    try http.log(line[0..@min(writer.end + 1, line.len)]);
}

fn write(writer: *std.Io.Writer, stage: Stage, depth: usize) std.Io.Writer.Error!void {
    try writer.splatByteAll(' ', 2 * depth);
    if (stage.dispatchNamespace) |namespace| try writer.print("{s}/", .{namespace});
    try writer.print("{s} {s}, CPU {s} ms", .{ stage.scriptName orelse "?", stage.outcome, stage.cpuTime.text });
    if (stage.event) |event| {
        const url = event.request.url;
        try writer.print(", {s} {s}", .{ event.request.method, url[0..@min(url.len, url_bytes_max)] });
        if (event.response) |answered| try writer.print(" -> {s}", .{answered.status.text});
    }
    if (stage.logs.len > 0) try writer.print(", log lines: {d}", .{stage.logs.len});
}

/// How far below the first stage it is. Parents stand before their children.
fn depthOf(stages: []const Stage, stage: Stage) usize {
    var depth: usize = 0;
    var parent = stage.everwarm.parent;
    var index = stages.len;
    while (index > 0) {
        index -= 1;
        const above = stages[index].everwarm;
        if (!std.mem.eql(u8, above.stage, parent orelse return depth)) continue;
        depth += 1;
        parent = above.parent;
    }
    return depth;
}
