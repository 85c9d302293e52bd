/* wasi:http 0.2 for C workers, spoken directly: a worker is a function `handle` and a few KB.
 *
 * A component function is, below its types, a core wasm function whose strings are (pointer, length), whose resources
 * are i32 handles, and whose larger results are written to memory the caller points at. Those core functions are
 * declared by hand at the end of this file, and `wasm-tools component new` checks each against the WIT.
 *
 *     #include "wasi_http.h"
 *
 *     void handle(http_request *request, http_response *response) {
 *         http_answer(response, 200, "text/plain", http_path(request));
 *     }
 *
 * The rules that hold:
 *  - One request at a time. Everything a request brings lies in one fixed arena, emptied when the next begins, so an
 *    instance can be used again and again and its memory does not grow.
 *  - The host is called for what is asked, when it is asked, and once: a handler that never looks at the method costs
 *    no call for it. `http_answer` with a short text is seven calls in all.
 *  - Every handle has one owner here and is dropped on every path: children before parents, as WASI demands.
 *  - A response is whole only if `handle` returns after beginning it. `http_give_up` breaks it off: the client sees an
 *    error, or, once the head was sent, a connection that ends too early.
 *
 * Include it in one source file only, the one with `handle`: it holds the worker's exports. Strings and memory of the C
 * library are there; its files and streams are not, because a worker has none.
 */
#ifndef EVERWARM_WASI_HTTP_H
#define EVERWARM_WASI_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Some bytes, not ended by a zero. */
typedef struct {
    const char *bytes;
    size_t length;
} http_text;

/* In the order of the WIT variant. */
typedef enum {
    HTTP_GET, HTTP_HEAD, HTTP_POST, HTTP_PUT, HTTP_DELETE, HTTP_CONNECT, HTTP_OPTIONS, HTTP_TRACE, HTTP_PATCH,
    HTTP_OTHER_METHOD
} http_method_name;

typedef struct http_request http_request;
typedef struct http_response http_response;

/* The worker: its answer to every request. */
void handle(http_request *request, http_response *response);

/* ------------------------------------------------------------------------------------------------------ the request
 * Texts stay valid until `handle` returns, except as `http_read` says. */

static http_method_name http_method(http_request *request);
/* Path and query as the client sent them, "/" when there is none. */
static http_text http_target(http_request *request);
/* The part of the target before the query. */
static http_text http_path(http_request *request);
/* The first value of a header; its bytes are NULL when there is none. */
static http_text http_header(http_request *request, const char *name);
/* Waits for the next bytes of the body. False at its end, and when it broke off: `http_broke_off` tells which.
 * The bytes are valid until the next call, and so is whatever else came from the host since the first one: that is
 * what keeps a body of 100 MB in 64 KiB. */
static bool http_read(http_request *request, http_text *chunk);
static bool http_broke_off(const http_request *request);

/* ----------------------------------------------------------------------------------------------------- the response */

/* Adds a header, before `http_begin`. Its texts must stay where they are until then. At most HTTP_HEADERS_MAX. */
static void http_add_header(http_response *response, const char *name, http_text value);
/* Sends the head; after it the client sees this answer and no other. False: the host refused it (a bad header). */
static bool http_begin(http_response *response, unsigned status);
/* Writes all of `bytes`, waiting while the client is slow. False: nobody takes the rest. */
static bool http_write(http_response *response, http_text bytes);
/* A whole answer, with its length. */
static bool http_answer(http_response *response, unsigned status, const char *type, http_text body);
/* No answer, or no more of it. */
static void http_give_up(http_response *response);

/* ---------------------------------------------------------------------------------------------------------- the log */

/* Writes to the worker's log: what its owner reads beside the request, and its tail worker hears. What is beyond the
 * limit of a request is dropped by the host. */
static void http_log(http_text text);

/* ------------------------------------------------------------------------------------------------------------ texts */

/* A text that is put together, in memory that goes with the request. */
typedef struct {
    char *bytes;
    size_t length;
    size_t room;
} http_buffer;

static http_text http_literal(const char *zero_ended);
static http_buffer http_buffer_of(size_t bytes);
/* Appends what there is room for. */
static void http_append(http_buffer *buffer, http_text text);
static void http_append_number(http_buffer *buffer, uint64_t number);
static http_text http_text_of(const http_buffer *buffer);

/* ============================================================================================================= below */

/* A response of a worker has a few; each is 16 bytes here. */
#define HTTP_HEADERS_MAX 64
/* Most of what a request may bring: a head of 128 KiB and one chunk of its body. */
#define HTTP_ARENA_BYTES (256 * 1024)
/* As much as a host hands over at once; asking for more would only cost arena. */
#define HTTP_CHUNK_BYTES_MAX (64 * 1024)
/* `blocking-write-and-flush` takes no more than this in WASI 0.2. */
#define HTTP_FLUSH_BYTES_MAX 4096

#define HTTP_IMPORT_(interface, name, suffix) \
    __attribute__((import_module(interface "@0.2.10"), import_name(name))) extern suffix
#define HTTP_TYPES_(name, suffix) HTTP_IMPORT_("wasi:http/types", name, suffix)
#define HTTP_STREAMS_(name, suffix) HTTP_IMPORT_("wasi:io/streams", name, suffix)

/* A variant, or an option, whose payload is a text at most. */
typedef struct { uint8_t which; http_text text; } http_variant_;
/* result<own<resource>, _> */
typedef struct { uint8_t failed; int32_t handle; } http_handle_result_;
/* result<list<u8> or nothing, stream-error>. On failure `a` holds the case of stream-error in its low byte, and `b` the
 * handle of the error, which belongs to us. */
typedef struct { uint8_t failed; uint32_t a; uint32_t b; } http_stream_result_;
/* result<u64, stream-error>, likewise. */
typedef struct { uint8_t failed; union { uint64_t permit; struct { uint32_t a, b; } error; }; } http_permit_result_;
typedef struct { http_text name, value; } http_header_;
/* result<_, error-code> */
typedef struct { uint64_t parts[5]; } http_finish_result_;

HTTP_TYPES_("[static]fields.from-list", void http_fields_from_list_(const http_header_ *, size_t, http_handle_result_ *));
HTTP_TYPES_("[method]fields.get", void http_fields_get_(int32_t, const char *, size_t, http_text *));
HTTP_TYPES_("[resource-drop]fields", void http_drop_fields_(int32_t));
HTTP_TYPES_("[method]incoming-request.method", void http_request_method_(int32_t, http_variant_ *));
HTTP_TYPES_("[method]incoming-request.path-with-query", void http_request_target_(int32_t, http_variant_ *));
HTTP_TYPES_("[method]incoming-request.headers", int32_t http_request_headers_(int32_t));
HTTP_TYPES_("[method]incoming-request.consume", void http_request_consume_(int32_t, http_handle_result_ *));
HTTP_TYPES_("[resource-drop]incoming-request", void http_drop_request_(int32_t));
HTTP_TYPES_("[method]incoming-body.stream", void http_incoming_stream_(int32_t, http_handle_result_ *));
HTTP_TYPES_("[resource-drop]incoming-body", void http_drop_incoming_(int32_t));
HTTP_TYPES_("[constructor]outgoing-response", int32_t http_new_response_(int32_t));
HTTP_TYPES_("[method]outgoing-response.set-status-code", int32_t http_set_status_(int32_t, int32_t));
HTTP_TYPES_("[method]outgoing-response.body", void http_response_body_(int32_t, http_handle_result_ *));
/* (outparam, ok = 0 or err = 1, the response or the case of error-code, and the widest payload of that) */
HTTP_TYPES_("[static]response-outparam.set",
            void http_set_response_(int32_t, int32_t, int32_t, int32_t, int64_t, int32_t, int32_t, int32_t, int32_t));
HTTP_TYPES_("[method]outgoing-body.write", void http_body_stream_(int32_t, http_handle_result_ *));
HTTP_TYPES_("[static]outgoing-body.finish", void http_finish_body_(int32_t, int32_t, int32_t, http_finish_result_ *));
HTTP_TYPES_("[resource-drop]outgoing-body", void http_drop_outgoing_(int32_t));
HTTP_STREAMS_("[method]input-stream.blocking-read", void http_stream_read_(int32_t, uint64_t, http_stream_result_ *));
HTTP_STREAMS_("[resource-drop]input-stream", void http_drop_input_(int32_t));
HTTP_STREAMS_("[method]output-stream.check-write", void http_check_write_(int32_t, http_permit_result_ *));
HTTP_STREAMS_("[method]output-stream.write",
              void http_stream_write_(int32_t, const char *, size_t, http_stream_result_ *));
HTTP_STREAMS_("[method]output-stream.blocking-write-and-flush",
              void http_stream_write_and_flush_(int32_t, const char *, size_t, http_stream_result_ *));
HTTP_STREAMS_("[method]output-stream.flush", void http_stream_flush_(int32_t, http_stream_result_ *));
HTTP_STREAMS_("[method]output-stream.subscribe", int32_t http_stream_subscribe_(int32_t));
HTTP_STREAMS_("[resource-drop]output-stream", void http_drop_output_(int32_t));
HTTP_IMPORT_("wasi:io/error", "[resource-drop]error", void http_drop_error_(int32_t));
HTTP_IMPORT_("wasi:cli/stdout", "get-stdout", int32_t http_stdout_(void));
HTTP_IMPORT_("wasi:io/poll", "[method]pollable.block", void http_block_(int32_t));
HTTP_IMPORT_("wasi:io/poll", "[resource-drop]pollable", void http_drop_pollable_(int32_t));

/* ------------------------------------------------------------------------------------------------------------ arena */

static _Alignas(16) char http_arena_[HTTP_ARENA_BYTES];
static size_t http_arena_top_;

/* A request that needs more than the arena is one no worker in C is made for. */
static void *http_allocate_(size_t alignment, size_t bytes) {
    size_t start = (http_arena_top_ + alignment - 1) & ~(alignment - 1);
    if (start > HTTP_ARENA_BYTES || bytes > HTTP_ARENA_BYTES - start) __builtin_trap();
    http_arena_top_ = start + bytes;
    return http_arena_ + start;
}

/* Where the host puts what it returns. */
__attribute__((export_name("cabi_realloc"))) void *http_cabi_realloc_(void *old, size_t old_bytes, size_t alignment,
                                                                      size_t bytes) {
    void *made = http_allocate_(alignment, bytes);
    if (old != NULL) memcpy(made, old, old_bytes < bytes ? old_bytes : bytes);
    return made;
}

/* ------------------------------------------------------------------------------------------------------------ texts */

static inline http_text http_literal(const char *zero_ended) {
    return (http_text){zero_ended, strlen(zero_ended)};
}

static inline http_buffer http_buffer_of(size_t bytes) {
    return (http_buffer){http_allocate_(1, bytes), 0, bytes};
}

static inline void http_append(http_buffer *buffer, http_text text) {
    size_t left = buffer->room - buffer->length;
    size_t length = text.length < left ? text.length : left;
    memcpy(buffer->bytes + buffer->length, text.bytes, length);
    buffer->length += length;
}

static inline void http_append_number(http_buffer *buffer, uint64_t number) {
    char digits[20];
    size_t at = sizeof digits;
    do {
        digits[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    http_append(buffer, (http_text){digits + at, sizeof digits - at});
}

static inline http_text http_text_of(const http_buffer *buffer) {
    return (http_text){buffer->bytes, buffer->length};
}

/* ---------------------------------------------------------------------------------------------------------- request */

struct http_request {
    int32_t handle;
    bool method_known;
    http_method_name method;
    http_text target;
    bool body_taken, broke_off;
    int32_t body, stream;
    size_t arena_mark;
};

static inline http_method_name http_method(http_request *request) {
    if (!request->method_known) {
        http_variant_ method;
        http_request_method_(request->handle, &method);
        request->method = (http_method_name)method.which;
        request->method_known = true;
    }
    return request->method;
}

static inline http_text http_target(http_request *request) {
    if (request->target.bytes == NULL) {
        http_variant_ target;
        http_request_target_(request->handle, &target);
        request->target = target.which == 1 ? target.text : http_literal("/");
    }
    return request->target;
}

static inline http_text http_path(http_request *request) {
    http_text target = http_target(request);
    const char *query = memchr(target.bytes, '?', target.length);
    return (http_text){target.bytes, query == NULL ? target.length : (size_t)(query - target.bytes)};
}

static inline http_text http_header(http_request *request, const char *name) {
    int32_t fields = http_request_headers_(request->handle);
    http_text values;
    http_fields_get_(fields, name, strlen(name), &values);
    http_drop_fields_(fields);
    return values.length == 0 ? (http_text){NULL, 0} : *(const http_text *)values.bytes;
}

/* Whether a stream ended well; takes the error if not. */
static inline bool http_stream_closed_(uint32_t which, uint32_t error) {
    if ((which & 0xFF) == 1) return true;
    http_drop_error_((int32_t)error);
    return false;
}

static inline int32_t http_handle_of_(http_handle_result_ result) {
    if (result.failed) __builtin_trap();
    return result.handle;
}

static inline bool http_read(http_request *request, http_text *chunk) {
    if (!request->body_taken) {
        http_handle_result_ made;
        http_request_consume_(request->handle, &made);
        request->body = http_handle_of_(made);
        http_incoming_stream_(request->body, &made);
        request->stream = http_handle_of_(made);
        request->arena_mark = http_arena_top_;
        request->body_taken = true;
    }
    for (;;) {
        http_arena_top_ = request->arena_mark;
        http_stream_result_ result;
        http_stream_read_(request->stream, HTTP_CHUNK_BYTES_MAX, &result);
        if (result.failed) {
            request->broke_off = !http_stream_closed_(result.a, result.b);
            return false;
        }
        if (result.b > 0) {
            *chunk = (http_text){(const char *)result.a, result.b};
            return true;
        }
    }
}

static inline bool http_broke_off(const http_request *request) {
    return request->broke_off;
}

/* --------------------------------------------------------------------------------------------------------- response */

struct http_response {
    int32_t outparam;
    bool head_sent, over;
    int32_t body, stream;
    size_t headers_count;
    http_header_ headers[HTTP_HEADERS_MAX];
};

static inline void http_add_header(http_response *response, const char *name, http_text value) {
    if (response->headers_count == HTTP_HEADERS_MAX) __builtin_trap();
    response->headers[response->headers_count++] = (http_header_){http_literal(name), value};
}

static inline bool http_begin(http_response *response, unsigned status) {
    http_handle_result_ made;
    http_fields_from_list_(response->headers, response->headers_count, &made);
    if (made.failed) return false;
    int32_t outgoing = http_new_response_(made.handle);
    if (status != 200 && http_set_status_(outgoing, (int32_t)status) != 0) __builtin_trap();
    http_response_body_(outgoing, &made);
    response->body = http_handle_of_(made);
    http_body_stream_(response->body, &made);
    response->stream = http_handle_of_(made);
    http_set_response_(response->outparam, 0, outgoing, 0, 0, 0, 0, 0, 0);
    response->head_sent = true;
    return true;
}

/* How many bytes the host takes now; waits until that is not zero. Zero: nobody takes any. */
static inline uint64_t http_permitted_(http_response *response) {
    for (;;) {
        http_permit_result_ result;
        http_check_write_(response->stream, &result);
        if (result.failed) {
            http_stream_closed_(result.error.a, result.error.b);
            return 0;
        }
        if (result.permit > 0) return result.permit;
        int32_t pollable = http_stream_subscribe_(response->stream);
        http_block_(pollable);
        http_drop_pollable_(pollable);
    }
}

static inline bool http_written_(http_stream_result_ result) {
    if (result.failed) http_stream_closed_(result.a, result.b);
    return !result.failed;
}

static inline bool http_write(http_response *response, http_text bytes) {
    http_stream_result_ result;
    if (response->over) return false;
    if (bytes.length == 0) return true;
    if (bytes.length <= HTTP_FLUSH_BYTES_MAX) {
        http_stream_write_and_flush_(response->stream, bytes.bytes, bytes.length, &result);
        return http_written_(result);
    }
    while (bytes.length > 0) {
        uint64_t permitted = http_permitted_(response);
        if (permitted == 0) return false;
        size_t piece = permitted < bytes.length ? (size_t)permitted : bytes.length;
        http_stream_write_(response->stream, bytes.bytes, piece, &result);
        if (!http_written_(result)) return false;
        bytes = (http_text){bytes.bytes + piece, bytes.length - piece};
    }
    http_stream_flush_(response->stream, &result);
    return http_written_(result);
}

static inline bool http_answer(http_response *response, unsigned status, const char *type, http_text body) {
    http_buffer length = http_buffer_of(20);
    http_append_number(&length, body.length);
    http_add_header(response, "content-type", http_literal(type));
    http_add_header(response, "content-length", http_text_of(&length));
    return http_begin(response, status) && http_write(response, body);
}

static inline void http_give_up(http_response *response) {
    if (response->over) return;
    response->over = true;
    if (response->head_sent) {
        http_drop_output_(response->stream);
        http_drop_outgoing_(response->body);
    } else {
        /* internal-error, the last case of error-code, with no text. */
        http_set_response_(response->outparam, 1, 38, 0, 0, 0, 0, 0, 0);
    }
}

/* -------------------------------------------------------------------------------------------------------------- log */

static inline void http_log(http_text text) {
    int32_t stream = http_stdout_();
    while (text.length > 0) {
        size_t piece = text.length < HTTP_FLUSH_BYTES_MAX ? text.length : HTTP_FLUSH_BYTES_MAX;
        http_stream_result_ result;
        http_stream_write_and_flush_(stream, text.bytes, piece, &result);
        if (result.failed) {
            http_stream_closed_(result.a, result.b);
            break;
        }
        text = (http_text){text.bytes + piece, text.length - piece};
    }
    http_drop_output_(stream);
}

/* ------------------------------------------------------------------------------------------------------- the export */

__attribute__((export_name("wasi:http/incoming-handler@0.2.10#handle"))) void http_handle_(int32_t incoming,
                                                                                          int32_t outparam) {
    /* Not initialised as a whole: that would clear a KB of headers for each request. */
    static http_response response;
    http_request request = {.handle = incoming};
    response.outparam = outparam;
    response.head_sent = response.over = false;
    response.headers_count = 0;
    http_arena_top_ = 0;
    handle(&request, &response);
    if (request.body_taken) {
        http_drop_input_(request.stream);
        http_drop_incoming_(request.body);
    }
    http_drop_request_(request.handle);
    if (!response.head_sent) return http_give_up(&response);
    if (response.over) return;
    http_drop_output_(response.stream);
    /* The result says whether the client took it all; there is nobody left to tell. */
    http_finish_result_ ignored;
    http_finish_body_(response.body, 0, 0, &ignored);
}

#endif
