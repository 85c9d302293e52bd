//! Returns without an answer: the platform has to give one.
const http = @import("wasi_http");

comptime {
    http.serve(handle);
}

fn handle(_: *http.Request, _: *http.Response) http.Error!void {}
