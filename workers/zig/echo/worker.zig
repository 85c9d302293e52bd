//! Sends the request's body back as it arrives, in constant memory; with `?digest` answers its SHA-256 and length.
const std = @import("std");
const http = @import("wasi_http");

comptime {
    http.serve(handle);
}

fn handle(request: *http.Request, response: *http.Response) http.Error!void {
    if (request.query("digest") != null) return digest(request, response);
    try response.header("content-type", request.header("content-type") orelse "application/octet-stream");
    try response.begin(200);
    const body = try request.body();
    defer body.close();
    while (try body.read()) |chunk| try response.write(chunk);
}

fn digest(request: *http.Request, response: *http.Response) http.Error!void {
    var sha256 = std.crypto.hash.sha2.Sha256.init(.{});
    var bytes: u64 = 0;
    {
        const body = try request.body();
        defer body.close();
        while (try body.read()) |chunk| {
            sha256.update(chunk);
            bytes += chunk.len;
        }
    }
    const hex = std.fmt.bytesToHex(sha256.finalResult(), .lower);
    try response.text(200, "sha256={s} bytes={d}\n", .{ &hex, bytes });
}
