// What stands between wasi:http and a Workers-style module: `export default { async fetch(request, env, ctx) }`.
//
// The engine can turn requests into fetch events by itself, but only once an instance: a second request finds the
// event already answered. Exporting the handler of wasi:http instead leaves the instance good for any number of them.
// One request is in the engine at a time; the exported function returns a promise, and the engine runs its event loop
// (timers, outgoing fetches) until that has settled.
//
// Reading the request's body and writing the response's wait inside the host, and no timer fires meanwhile: one
// instance has nobody else to serve. Chunks are asked for lazily, so a body that is not read is never moved.
//
// Every step through a promise makes the engine look at the clock two or three times, and that is a call to the host.
// So this file uses as few as it can: `then` and no `await` on the way of every request, and a body that was made from
// a string is not read back through a stream.
//
// A handler that throws or rejects has no answer: its error goes to stderr with its stack, and the host is told that
// there is none; it answers for it (500, outcome "exception"). A polite 500 from here would have hidden that. After
// the head was sent, the body is dropped unfinished, so that the host cuts the connection and a half answer never looks
// whole.
import worker from 'everwarm:worker';
import { getEnvironment } from 'wasi:cli/environment@0.2.10';
import { Fields, OutgoingBody, OutgoingResponse, ResponseOutparam } from 'wasi:http/types@0.2.10';

// As much as a host hands over at once.
const readBytesMax = 65536;
// `blocking-write-and-flush` is one call instead of three, and takes no more than this in WASI 0.2.
const flushBytesMax = 4096;
// Methods that have no body by HTTP's rules; the Request constructor insists on it.
const bodylessMethods = new Set(['GET', 'HEAD']);
// They are the connection's, and the host refuses them; a response of fetch() that is passed on may have some.
const connectionHeaders = new Set([
  ...['connection', 'keep-alive', 'proxy-authenticate', 'proxy-authorization', 'proxy-connection', 'transfer-encoding'],
  ...['upgrade', 'te', 'host', 'http2-settings'],
]);

// The version's variables and secrets, from its first request on: until then there are none, and none are kept.
let env = Object.freeze({});
const encoder = new TextEncoder();

if (typeof worker?.fetch !== 'function') throw new TypeError('the default export has no function fetch()');

// The string that a response was made from. It cannot change, so it is what its unread body would give. The length that
// the engine notes in the headers comes out again, or it would be copied to responses with other bodies.
const texts = new WeakMap();
const EngineResponse = globalThis.Response;
const ResponseWithText = new Proxy(EngineResponse, {
  construct(target, args, newTarget) {
    const response = Reflect.construct(target, args, newTarget === ResponseWithText ? target : newTarget);
    if (typeof args[0] === 'string') {
      texts.set(response, args[0]);
      if (args[0] !== '') response.headers.delete('content-length');
    }
    return response;
  },
});
EngineResponse.prototype.constructor = ResponseWithText;
EngineResponse.json = (data, init) => {
  const text = JSON.stringify(data);
  if (text === undefined) throw new TypeError('the data has no form in JSON');
  const headers = new Headers(init?.headers);
  if (!headers.has('content-type')) headers.set('content-type', 'application/json');
  return new ResponseWithText(text, { status: init?.status, statusText: init?.statusText, headers });
};
// The engine has no clone(). With a string at hand there is one; a stream cannot be split behind a response's back.
EngineResponse.prototype.clone ??= function () {
  const text = this.bodyUsed ? undefined : texts.get(this);
  if (text === undefined && this.body !== null) throw new TypeError('only a response made from a string can be cloned');
  return new ResponseWithText(text ?? null, { status: this.status, statusText: this.statusText, headers: this.headers });
};
globalThis.Response = ResponseWithText;

// Until its first request an instance may be rehearsed: the platform lets it answer a few requests that this file makes
// the answers of, and keeps the memory that this leaves for all instances. The worker's own code has no part in it.
let rehearsing = true;
const rehearsed = {
  fetch(request) {
    const { pathname } = new URL(request.url);
    const seen = `${request.method} ${pathname} ${request.headers.get('accept')}`;
    if (pathname === '/stream') return new Response(request.body);
    if (pathname === '/body') return request.text().then((text) => Response.json({ seen, size: text.length }));
    if (pathname === '/json') return Promise.resolve(Response.json({ seen }));
    return new Response(seen, { headers: { 'content-type': 'text/plain' } });
  },
};

export const incomingHandler = {
  handle(incoming, outparam) {
    if (rehearsing) {
      rehearsing = incoming.authority() === 'rehearsal.invalid';
      // Also in a rehearsal, which has an empty one: then the engine knows the way.
      env = Object.freeze(Object.fromEntries(getEnvironment()));
    }
    return new Exchange(incoming, outparam, rehearsing ? rehearsed : worker).run();
  },
};

// One request and its answer.
class Exchange {
  constructor(incoming, outparam, served) {
    this.served = served;
    this.incoming = incoming;
    this.outparam = outparam;
    this.requestBody = new RequestBody(incoming);
    this.outgoingBody = undefined;
    this.stream = undefined;
    this.waiting = [];
  }

  run() {
    let answered;
    try {
      const ctx = {
        waitUntil: (promise) => {
          this.waiting.push(promise);
        },
        passThroughOnException() {},
      };
      answered = this.served.fetch(this.request(), env, ctx);
    } catch (error) {
      return this.fail(error);
    }
    if (typeof answered?.then !== 'function') return this.answer(answered);
    return answered.then(
      (response) => this.answer(response),
      (error) => this.fail(error),
    );
  }

  request() {
    const { incoming } = this;
    const { tag, val } = incoming.method();
    const method = tag === 'other' ? val : tag.toUpperCase();
    this.headOnly = method === 'HEAD';
    const fields = incoming.headers();
    const headers = new Headers();
    for (const [name, value] of fields.entries()) headers.append(name, String.fromCharCode(...value));
    fields[Symbol.dispose]();
    const scheme = incoming.scheme()?.tag === 'HTTPS' ? 'https' : 'http';
    const authority = headers.get('host') ?? incoming.authority() ?? 'localhost';
    const url = `${scheme}://${authority}${incoming.pathWithQuery() ?? '/'}`;
    const init = { method, headers };
    if (!bodylessMethods.has(method)) Object.assign(init, { body: this.requestBody.readable(), duplex: 'half' });
    // A request that is made from these headers lacks Host, which a browser's script may not set; a worker may see it.
    return Object.defineProperty(new Request(url, init), 'headers', { value: headers });
  }

  // Sends a response. Gives a promise only if there is something to wait for; so do `fail` and `end`.
  answer(response) {
    try {
      if (!(response instanceof EngineResponse)) throw new TypeError('fetch() of the worker must return a Response');
      const text = response.bodyUsed ? undefined : texts.get(response);
      if (text !== undefined) {
        const bytes = encoder.encode(text);
        const hasBody = bytes.length > 0 && !this.headOnly;
        this.sendHead(response, hasBody, bytes.length);
        if (hasBody && this.write(bytes)) this.finish();
      } else if (response.body === null || this.headOnly) {
        this.sendHead(response, false);
        response.body?.cancel().catch(() => {});
      } else {
        const reader = response.body.getReader();
        this.sendHead(response, true);
        return this.pump(reader).then(
          () => this.end(),
          (error) => this.fail(error),
        );
      }
    } catch (error) {
      return this.fail(error);
    }
    return this.end();
  }

  sendHead(response, hasBody, length) {
    const entries = [];
    for (const [name, value] of response.headers) {
      if (name === 'content-length') length = undefined;
      if (!connectionHeaders.has(name)) entries.push([name, Uint8Array.from(value, byteOf)]);
    }
    if (length !== undefined) entries.push(['content-length', encoder.encode(length)]);
    const outgoing = new OutgoingResponse(Fields.fromList(entries));
    if (response.status !== 200) outgoing.setStatusCode(response.status);
    // A response whose body was never asked for has none.
    if (hasBody) {
      this.outgoingBody = outgoing.body();
      this.stream = this.outgoingBody.write();
    }
    const { outparam } = this;
    this.outparam = undefined;
    ResponseOutparam.set(outparam, { tag: 'ok', val: outgoing });
  }

  // Copies a readable stream out.
  async pump(reader) {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return this.finish();
      // Not `instanceof`: what passes through a stream of the engine's own may come from another realm.
      if (Object.prototype.toString.call(value) !== '[object Uint8Array]') {
        throw new TypeError('a response body must consist of Uint8Array chunks');
      }
      if (!this.write(value)) return reader.cancel(new TypeError('nobody takes the rest of the response'));
    }
  }

  // False if nobody takes the rest, which is no fault of the worker.
  write(bytes) {
    try {
      writeAll(this.stream, bytes);
      return true;
    } catch (error) {
      if (failureOf(error) === undefined) throw error;
      return false;
    }
  }

  finish() {
    this.stream[Symbol.dispose]();
    const body = this.outgoingBody;
    this.outgoingBody = undefined;
    try {
      OutgoingBody.finish(body, undefined);
    } catch (error) {
      if (error?.payload?.tag !== 'HTTP-response-body-size') throw error;
      // The host knows, and cuts it off.
      console.error("the response's body is not as long as its content-length");
    }
  }

  fail(error) {
    report(error);
    if (this.outparam !== undefined) {
      ResponseOutparam.set(this.outparam, { tag: 'err', val: { tag: 'internal-error', val: undefined } });
    }
    return this.end();
  }

  // Everything that was lent goes back, before what the worker still wants to do.
  end() {
    if (this.outgoingBody !== undefined) {
      this.stream[Symbol.dispose]();
      this.outgoingBody[Symbol.dispose]();
    }
    this.requestBody.close();
    this.incoming[Symbol.dispose]();
    return this.waiting.length > 0 ? this.wait() : undefined;
  }

  async wait() {
    // A promise may add more while it runs.
    while (this.waiting.length > 0) {
      for (const result of await Promise.allSettled(this.waiting.splice(0))) {
        if (result.status === 'rejected') report(result.reason);
      }
    }
  }
}

// The request's body: taken from the host at the first read, given back when it ends or the handler is through.
class RequestBody {
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

function writeAll(stream, bytes) {
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

// Header values are bytes, and in JavaScript strings of one character a byte.
function byteOf(character) {
  return character.charCodeAt(0);
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
