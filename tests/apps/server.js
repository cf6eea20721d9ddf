// An HTTP server in Node.js with a worker thread, a child process and a timer. `server.js PORT DIR`.
// Speaks what tests/apps/README.md tells, over HTTP.
'use strict';

const fs = require('fs');
const http = require('http');
const { fork } = require('child_process');
const { Worker, isMainThread, parentPort } = require('worker_threads');

if (!isMainThread) {
  parentPort.on('message', (number) => parentPort.postMessage(number * number));
} else if (process.send) {
  process.on('message', (number) => process.send(number));
  process.on('disconnect', () => process.exit(0));
} else {
  main();
}

function main() {
  const [port, dir] = process.argv.slice(2);
  const log = fs.openSync(`${dir}/log`, 'a');
  const worker = new Worker(__filename);
  const child = fork(__filename);
  const items = new Map();
  let count = 0;
  let ticks = 0;
  setInterval(() => { ticks += 1; }, 5);

  const ask = (what, send, number) => new Promise((resolve) => {
    what.once('message', resolve);
    send(number);
  });

  async function add() {
    count += 1;
    const number = count;
    items.set(number, `item ${number}`);
    await fs.promises.appendFile(`${dir}/log`, `${number}\n`); // goes through the thread pool
    const squared = await ask(worker, (n) => worker.postMessage(n), number);
    const echoed = await ask(child, (n) => child.send(n), number);
    if (squared !== number * number || echoed !== number) {
      return `failed at ${number}: the worker said ${squared}, the child ${echoed}`;
    }
    return `ok ${number}`;
  }

  async function check() {
    const before = ticks;
    await new Promise((resolve) => setTimeout(resolve, 20));
    if (ticks === before) return 'failed: the timer stands still';
    if (items.size !== count) return `failed: ${items.size} items, count ${count}`;
    if (!fs.fstatSync(log).isFile()) return 'failed: the log is no file';
    // Optimised code, and a collection of what it made.
    let sum = 0;
    for (let i = 0; i < 20000; i += 1) sum += [i, i].length;
    return sum === 40000 ? `ok ${count}` : `failed: ${sum}`;
  }

  let last = Promise.resolve();
  http.createServer((request, response) => {
    last = last.then(() => (request.url === '/add' ? add() : check())).then((said) => {
      response.end(`${said}\n`);
    });
  }).listen(Number(port), '127.0.0.1');
}
