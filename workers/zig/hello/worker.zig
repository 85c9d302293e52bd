//! Answers every request with a line that names its path.
const http = @import("wasi_http");

comptime {
    http.serve(handle);
}

fn handle(request: *http.Request, response: *http.Response) http.Error!void {
    try response.text(200, "hello from Zig\nyou asked for {s}\n", .{request.path()});
}
