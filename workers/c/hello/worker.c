/* Answers every request with a line that names its path. */
#include "wasi_http.h"

void handle(http_request *request, http_response *response) {
    http_text path = http_path(request);
    http_buffer text = http_buffer_of(path.length + 64);
    http_append(&text, http_literal("hello from C\nyou asked for "));
    http_append(&text, path);
    http_append(&text, http_literal("\n"));
    http_answer(response, 200, "text/plain", http_text_of(&text));
}
