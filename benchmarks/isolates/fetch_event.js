// A stock component of the engine: a fetch event, nothing of ours in between. It answers once in its life.
addEventListener('fetch', (event) => {
  const { method, url } = event.request;
  const body = JSON.stringify({ hello: 'fetch event', method, path: new URL(url).pathname });
  event.respondWith(new Response(body, { headers: { 'content-type': 'application/json' } }));
});
