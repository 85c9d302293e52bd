// A customer's worker in JavaScript: it asks for the time and says it.
export default {
  async fetch(request) {
    const { pathname } = new URL(request.url);
    const answer = await fetch('http://time.example.com/now');
    const time = await answer.text();
    console.log(`carol was asked for ${pathname}`);
    return new Response(`hello from carol, in JavaScript: it is ${time}\n`);
  },
};
