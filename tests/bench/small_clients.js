// Many small clients in one Node process: each has a connection of its own and one append under way.
// Reads one JSON object from stdin, writes one to stdout; see bench_workers.py.
'use strict';
const fs = require('node:fs');
const { performance } = require('node:perf_hooks');

const asked = JSON.parse(fs.readFileSync(0, 'utf8'));
const grpc = require(asked.grpc);

const SERVICE = '/peerd.v1.LogService/';
const same = (bytes) => bytes;
const request = Buffer.from(asked.request, 'base64');
const credentials = grpc.credentials.createSsl(
  ...['ca', 'key', 'certificate'].map((name) => fs.readFileSync(asked.tls[name])));

const latencies = [];
const errors = {};
let begin = 0;
let end = 0;

function note(error) {
  errors[error.message] = (errors[error.message] || 0) + 1;
}

function measured(started) {
  const now = performance.now();
  if (started >= begin && now <= end) latencies.push(now - started);
  return now < end;
}

// One unary call after the other.
function appendOnce(client, done) {
  const started = performance.now();
  client.makeUnaryRequest(SERVICE + 'Append', same, same, request, (error) => {
    if (error) note(error);
    if (error ? performance.now() < end : measured(started)) appendOnce(client, done);
    else done();
  });
}

// One message after the other on one stream.
function appendOnStream(client, done) {
  const stream = client.makeBidiStreamRequest(SERVICE + 'AppendStream', same, same);
  let started = performance.now();
  stream.on('data', () => {
    if (measured(started)) {
      started = performance.now();
      stream.write(request);
    } else stream.end();
  });
  stream.on('error', (error) => { note(error); done(); });
  stream.on('end', done);
  stream.write(request);
}

async function main() {
  const append = asked.stream ? appendOnStream : appendOnce;
  const clients = Array.from({ length: asked.clients }, (_, number) =>
    new grpc.Client(asked.addresses[number % asked.addresses.length], credentials, {
      'grpc.use_local_subchannel_pool': 1,
    }));
  await Promise.all(clients.map((client) => new Promise((resolve, reject) =>
    client.waitForReady(Date.now() + 30000, (error) => (error ? reject(error) : resolve())))));
  begin = performance.now() + 1000 * asked.warm_s;
  end = begin + 1000 * asked.seconds;
  setTimeout(() => process.stdout.write('{"begun": true}\n'), 1000 * asked.warm_s);
  const cpu = process.cpuUsage();
  await Promise.all(clients.map((client) => new Promise((resolve) => append(client, resolve))));
  const used = process.cpuUsage(cpu);
  latencies.sort((a, b) => a - b);
  const at = (share) => latencies[Math.min(latencies.length - 1, Math.floor(share * latencies.length))];
  process.stdout.write(JSON.stringify({
    appends: latencies.length, errors, p50_ms: at(0.5), p99_ms: at(0.99),
    cpu_s: (used.user + used.system) / 1e6,
  }) + '\n');
  clients.forEach((client) => client.close());
}

main();
