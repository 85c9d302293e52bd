// What stands between wasi:http and a Workers-style module: `export default { async fetch(request, env, ctx) }`.
//
// The engine can turn requests into fetch events by itself, but only once an instance: a second request finds the
// event already answered. Exporting the handler of wasi:http instead leaves the instance good for any number of them.
// One request is in the engine at a time; the exported function is async, and the engine runs its event loop (timers,
// outgoing fetches) until the promise it returned has settled.
//
// Reading the request's body and writing the response's wait inside the host, and no timer fires meanwhile: one
// instance has nobody else to serve. Chunks are asked for lazily, so a body that is not read is never moved.
//
// A handler that throws or rejects ends the instance: the error goes to stderr with its stack and then out of the
// exported function, which traps. The platform answers for it (500, outcome "exception") and a torn instance is not
// used again; a polite 500 from here would have hidden both. After the head was sent, the same makes the platform cut
// the connection, so that a half answer never looks whole.
import worker from 'everwarm:worker';
import { Fields, OutgoingBody, OutgoingResponse, ResponseOutparam } from 'wasi:http/types@0.2.10';

// As much as a host hands over at once.
const readBytesMax = 65536;
// `blocking-write-and-flush` takes no more than this in WASI 0.2.
const flushBytesMax = 4096;
// Statuses and methods that have no body by HTTP's rules; the Request constructor insists on it for the latter.
const bodylessMethods = new Set(['GET', 'HEAD']);

// The manifest's [vars], put here by the build.
const env = Object.freeze(EVERWARM_VARS);

export const incomingHandler = {
  async handle(incoming, outparam) {
    const waiting = [];
    const ctx = {
      waitUntil(promise) {
        waiting.push(promise);
      },
      passThroughOnException() {},
    };
    let body;
    try {
      body = new LazyBody(incoming);
      const request = requestFrom(incoming, body);
      const response = await worker.fetch(request, env, ctx);
      if (!(response instanceof Response)) throw new TypeError('fetch() of the worker must return a Response');
      await send(response, outparam, request.method === 'HEAD');
    } catch (error) {
      report(error);
      // Its message and stack are out already, and the engine would print both again.
      throw 'the worker failed';
    } finally {
      body?.close();
      incoming[Symbol.dispose]();
    }
    // A promise may add more while it runs.
    while (waiting.length > 0) {
      for (const result of await Promise.allSettled(waiting.splice(0))) {
        if (result.status === 'rejected') report(result.reason);
      }
    }
  },
};

// Header values are bytes, and in JavaScript strings of one character a byte.
function byteOf(character) {
  return character.charCodeAt(0);
}

function requestFrom(incoming, body) {
  const { tag, val } = incoming.method();
  const method = tag === 'other' ? val : tag.toUpperCase();
  const fields = incoming.headers();
  const headers = new Headers();
  for (const [name, value] of fields.entries()) headers.append(name, String.fromCharCode(...value));
  fields[Symbol.dispose]();
  const scheme = incoming.scheme()?.tag === 'HTTPS' ? 'https' : 'http';
  const authority = incoming.authority() ?? headers.get('host') ?? 'localhost';
  const url = `${scheme}://${authority}${incoming.pathWithQuery() ?? '/'}`;
  if (bodylessMethods.has(method)) return new Request(url, { method, headers });
  return new Request(url, { method, headers, body: body.readable(), duplex: 'half' });
}

// The request's body: taken from the host at the first read, given back when it ends or the handler is through.
class LazyBody {
  constructor(incoming) {
    this.incoming = incoming;
    this.handles = undefined;
    this.over = false;
  }

  readable() {
    return new ReadableStream(
      {
        pull: (controller) => {
          const chunk = this.read();
          if (chunk === undefined) controller.close();
          else controller.enqueue(chunk);
        },
        cancel: () => this.close(),
      },
      { highWaterMark: 0 },
    );
  }

  read() {
    if (this.over) throw new TypeError('the request is over');
    if (this.handles === undefined) {
      const body = this.incoming.consume();
      this.handles = [body.stream(), body];
    }
    for (;;) {
      try {
        const chunk = this.handles[0].blockingRead(BigInt(readBytesMax));
        // The bindings live in a realm of their own; a worker may ask whether this is its Uint8Array.
        if (chunk.length > 0) return new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.byteLength);
      } catch (error) {
        if (failureOf(error)?.tag !== 'closed') throw new TypeError('the request body was cut short');
        this.close();
        return undefined;
      }
    }
  }

  close() {
    this.over = true;
    // The stream before the body it belongs to.
    for (const handle of this.handles ?? []) handle[Symbol.dispose]();
    this.handles = undefined;
  }
}

async function send(response, outparam, headOnly) {
  const entries = [];
  for (const [name, value] of response.headers) entries.push([name, Uint8Array.from(value, byteOf)]);
  const outgoing = new OutgoingResponse(Fields.fromList(entries));
  outgoing.setStatusCode(response.status);
  const body = outgoing.body();
  ResponseOutparam.set(outparam, { tag: 'ok', val: outgoing });
  const stream = body.write();
  let whole = false;
  try {
    if (headOnly || response.body === null) await response.body?.cancel();
    else whole = await pump(response.body, stream);
    whole = whole || headOnly || response.body === null;
  } finally {
    stream[Symbol.dispose]();
    // A body that is dropped without being finished tells the host that this answer is not whole.
    if (!whole) body[Symbol.dispose]();
  }
  if (whole) OutgoingBody.finish(body, undefined);
}

// Copies a readable stream out; false if the client went away, which is no fault of the worker.
async function pump(readable, stream) {
  const reader = readable.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return true;
    // Not `instanceof`: what passes through a stream of the engine's own may come from another realm.
    if (Object.prototype.toString.call(value) !== '[object Uint8Array]') {
      throw new TypeError('a response body must consist of Uint8Array chunks');
    }
    try {
      write(stream, value);
    } catch (error) {
      if (failureOf(error) === undefined) throw error;
      await reader.cancel(new TypeError('the client went away'));
      return false;
    }
  }
}

function write(stream, bytes) {
  if (bytes.length === 0) return;
  if (bytes.length <= flushBytesMax) {
    stream.blockingWriteAndFlush(bytes);
    return;
  }
  for (let start = 0; start < bytes.length; ) {
    const permitted = Number(stream.checkWrite());
    if (permitted === 0) {
      const pollable = stream.subscribe();
      pollable.block();
      pollable[Symbol.dispose]();
      continue;
    }
    stream.write(bytes.subarray(start, start + permitted));
    start += permitted;
  }
  stream.flush();
}

// The stream-error inside what a failed stream call throws, with its own error given back; undefined for anything else.
function failureOf(error) {
  const failure = error?.payload;
  if (failure?.tag === 'last-operation-failed') failure.val?.[Symbol.dispose]?.();
  return failure?.tag === 'closed' || failure?.tag === 'last-operation-failed' ? failure : undefined;
}

function report(error) {
  if (typeof error?.stack !== 'string') return console.error(`Uncaught ${String(error)}`);
  // The last frames are the engine's own, with the build machine's path in them.
  const frames = error.stack.split('\n').filter((frame) => frame !== '' && !frame.includes('initializer.js'));
  console.error([String(error), ...frames.map((frame) => `  at ${frame}`)].join('\n'));
}
