/* A customer's worker in C: it answers, and writes a line to its log. */
#include "wasi_http.h"

void handle(http_request *request, http_response *response) {
    static uint64_t visitors;
    http_text path = http_path(request);
    http_buffer line = http_buffer_of(64), text = http_buffer_of(path.length + 64);
    http_append(&line, http_literal("visitor "));
    http_append_number(&line, ++visitors);
    http_append(&line, http_literal(" of this isolate\n"));
    http_log(http_text_of(&line));
    http_append(&text, http_literal("hello from alice, in C: you asked for "));
    http_append(&text, path);
    http_append(&text, http_literal("\n"));
    http_answer(response, 200, "text/plain", http_text_of(&text));
}
