//! Crashes on each request; `?ok` answers, and says how many requests this instance has answered.
const http = @import("wasi_http");

var answered: u64 = 0;

comptime {
    http.serve(handle);
}

fn handle(request: *http.Request, response: *http.Response) http.Error!void {
    if (request.query("ok") == null) @trap();
    answered += 1;
    try response.text(200, "ok {d}\n", .{answered});
}
