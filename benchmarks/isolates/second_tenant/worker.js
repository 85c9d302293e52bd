// Another tenant's worker: other source, other data, the same engine as every worker of its toolchain.
const prices = new Map([['apple', 30], ['pear', 45], ['plum', 12]]);

export default {
  async fetch(request) {
    const fruit = new URL(request.url).pathname.slice(1);
    if (!prices.has(fruit)) return new Response(`no ${fruit} today\n`);
    return Response.json({ fruit, cents: prices.get(fruit) });
  },
};
