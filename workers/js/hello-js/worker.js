// A worker in the shape most edge platforms know; `everwarm build` wraps it for wasi:http.
let served = 0;

export default {
  async fetch(request, env, ctx) {
    served += 1;
    const url = new URL(request.url);
    if (url.pathname === '/echo') {
      const type = request.headers.get('content-type') ?? 'text/plain';
      return new Response(request.body, { headers: { 'content-type': type } });
    }
    if (url.pathname === '/sum') {
      const numbers = await request.json();
      return Response.json({ sum: numbers.reduce((total, number) => total + number, 0) });
    }
    if (url.pathname === '/stream') return new Response(countdown(5), { headers: { 'content-type': 'text/plain' } });
    if (url.pathname === '/later') ctx.waitUntil(pause(20).then(() => console.log('done after the response')));
    if (url.pathname === '/throw') throw new Error('asked to');
    return Response.json({ hello: env.GREETING, method: request.method, path: url.pathname, served });
  },
};

function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

function countdown(from) {
  const encoder = new TextEncoder();
  let left = from;
  return new ReadableStream({
    async pull(controller) {
      if (left === 0) return controller.close();
      await pause(20);
      controller.enqueue(encoder.encode(`${left}\n`));
      left -= 1;
    },
  });
}
