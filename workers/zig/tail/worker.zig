//! A tail worker: it hears of each request of the workers that name it in `[tail]`, once, when everything has ended, and
//! writes what it hears to its own log. Its body is a JSON array, an object for each stage.
const http = @import("wasi_http");

comptime {
    http.serve(handle);
}

fn handle(request: *http.Request, response: *http.Response) http.Error!void {
    const body = try request.body();
    defer body.close();
    while (try body.read()) |chunk| try http.log(chunk);
    try response.text(200, "heard\n", .{});
}
