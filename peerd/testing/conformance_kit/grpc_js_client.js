// A client of peerd in a page of JavaScript, behind the kit's line protocol:
// node grpc_js_client.js PROTO_DIRECTORY (with @grpc/grpc-js and @grpc/proto-loader to be found).
// One append under way at a time, unary calls, exactly once by producer id and sequence.
'use strict';
const crypto = require('node:crypto');
const fs = require('node:fs');
const readline = require('node:readline');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');
const protobuf = require('protobufjs');

const protos = process.argv[2] || 'proto';
const contract = grpc.loadPackageDefinition(loader.loadSync(
  ['peerd/v1/log.proto', 'las/v1/shard_map.proto'],
  { includeDirs: [protos], keepCase: true, defaults: true, longs: String, enums: String, oneofs: true }));
const details = protobuf.parse(`syntax = "proto3";
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }`, { keepCase: true }).root;

// What is worth another try with the same sequence; everything else is told as it is.
const AGAIN = new Set(['NOT_PRIMARY', 'FENCED', 'MOVED', 'PRODUCER_WINDOW_FULL', 'OVERLOADED', 'DISK_RESERVE',
  'NOT_ENOUGH_PEERS', 'CRC_MISMATCH', 'OUTCOME_UNKNOWN', 'STORE_FAILED', 'SHUTTING_DOWN', 'MAP_UNKNOWN',
  'UNKNOWN_SHARD', 'KEY_OUTSIDE_SHARD']);
const PAUSE_MS = 50;
const MAP_TIMEOUT_MS = 1000;

const state = { addresses: [], credentials: null, channels: new Map(), map: null,
  producer: crypto.randomBytes(16), sequences: new Map(), turn: 0 };
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function service(name, address) {
  const id = name + address;
  if (!state.channels.has(id)) {
    const Client = name === 'map' ? contract.las.v1.ShardMapService : contract.peerd.v1.LogService;
    state.channels.set(id, new Client(address, state.credentials, {
      'grpc.enable_retries': 0, 'grpc.max_receive_message_length': 8 << 20,
      'grpc.initial_reconnect_backoff_ms': 100, 'grpc.max_reconnect_backoff_ms': 1000 }));
  }
  return state.channels.get(id);
}

// Reason, taken and facts of an error; no reason: it did not come from peerd, and nothing is known.
function told(error) {
  const raw = error.metadata && error.metadata.get('grpc-status-details-bin')[0];
  if (raw) {
    for (const each of details.lookupType('Status').decode(raw).details) {
      if (!each.type_url.endsWith('google.rpc.ErrorInfo')) continue;
      const info = details.lookupType('ErrorInfo').decode(each.value);
      return { reason: info.reason, taken: info.metadata.taken || 'unknown', facts: info.metadata };
    }
  }
  return { reason: '', taken: 'unknown', facts: {} };
}

// The newest map that somebody gives; a map never goes back.
async function refresh() {
  const known = state.map ? state.map.nodes.map((node) => node.address) : [];
  const all = [...new Set([...state.addresses, ...known])];
  for (let tried = 0; tried < all.length; tried += 1) {
    const address = all[state.turn++ % all.length];
    try {
      const { map } = await new Promise((resolve, reject) => service('map', address).getMap({},
        { deadline: Date.now() + MAP_TIMEOUT_MS }, (error, got) => (error ? reject(error) : resolve(got))));
      if (!state.map || BigInt(map.version) >= BigInt(state.map.version)) state.map = map;
      return;
    } catch (error) { /* the next one */ }
  }
}

const hash = (key) => crypto.createHash('sha256').update(key).digest().readBigUInt64BE(0);

// The shard of a key with its primary's address; null while the map knows none.
function route(log, key) {
  const entry = state.map && state.map.logs.find((each) => each.name === log);
  if (!entry) return null;
  const hashed = key === null ? null : hash(key);
  const shard = state.map.shards.find((each) => entry.shards.includes(each.shard) && (hashed === null
    || (BigInt(each.key_hash_low) <= hashed && hashed <= BigInt(each.key_hash_high))));
  if (!shard) return null;
  const node = state.map.nodes.find((each) => each.name === shard.open.plan.primary.peer);
  return { shard: shard.shard, address: node ? node.address : state.addresses[0] };
}

function appendOnce(address, request, deadline) {
  return new Promise((resolve, reject) => service('log', address).append(request, { deadline },
    (error, got) => (error ? reject(error) : resolve(got.receipt))));
}

async function append(asked) {
  const key = asked.key === null ? null : Buffer.from(asked.key, 'base64');
  const record = { value: Buffer.from(asked.value, 'base64') };
  if (key !== null) record.key = key;
  const deadline = Date.now() + 1000 * asked.timeout_s;
  let taken = 'no';
  let last = '';
  let hint = '';
  let pinned = null; // The shard that it was first sent to: its sequence belongs there.
  while (Date.now() < deadline) {
    const at = route(asked.log, key);
    if (!at) {
      await refresh();
      if (!state.map || !route(asked.log, key)) {
        if (state.map) return { ok: false, reason: 'UNKNOWN_LOG', taken: 'no' };
        await sleep(PAUSE_MS);
      }
      continue;
    }
    pinned = pinned || at.shard;
    const sequence = state.sequences.get(pinned) || 0;
    const request = { log: asked.log, shard: pinned, producer_id: state.producer, first_sequence: sequence,
      batch: { record_count: 1, records: { records: [record] } } };
    try {
      const receipt = await appendOnce(hint || at.address, request, deadline);
      state.sequences.set(pinned, sequence + 1);
      return { ok: true, shard: Number(receipt.shard), offset: Number(receipt.base_offset) };
    } catch (error) {
      const { reason, taken: said, facts } = told(error);
      last = reason;
      if (reason === 'SPLIT') {
        // The parent does not have it and never will: another shard, with a sequence of its own.
        pinned = null;
        taken = 'no';
      } else if (said === 'unknown') taken = 'unknown';
      else if (reason && !AGAIN.has(reason)) {
        return { ok: false, reason, taken };
      }
      hint = reason === 'MOVED' || reason === 'NOT_PRIMARY' ? facts.leader || '' : '';
      await sleep(Number(facts.retry_after_ms || PAUSE_MS));
      await refresh();
    }
  }
  if (taken === 'unknown') { // Its sequence may be used: nothing more under this id.
    state.producer = crypto.randomBytes(16);
    state.sequences.clear();
  }
  return { ok: false, reason: last || 'DEADLINE', taken };
}

// A read goes on from its resume token until nothing is left, also over a split.
async function read(asked) {
  const records = [];
  const gaps = [];
  const request = { log: asked.log };
  if (asked.shard !== undefined) Object.assign(request, { shard: asked.shard, offset: asked.offset });
  try {
    await new Promise((resolve, reject) => {
      const stream = service('log', state.addresses[state.turn % state.addresses.length])
        .read(request, { deadline: Date.now() + 25000 });
      stream.on('data', (got) => {
        for (const batch of got.batches) {
          if (batch.batch.compressed) throw new Error('packed batches are not read here');
          batch.batch.records.records.forEach((each, index) => {
            const offset = Number(batch.base_offset) + index;
            if (asked.offset !== undefined && offset < asked.offset) return;
            records.push([Number(batch.shard), offset,
              each._key ? each.key.toString('base64') : null, each.value.toString('base64')]);
          });
        }
        for (const gap of got.gaps) gaps.push([gap.shard, gap.first_offset, gap.next_offset].map(Number));
      });
      stream.on('error', reject);
      stream.on('end', resolve);
    });
  } catch (error) {
    const { reason, facts } = told(error);
    if (!reason && asked.tries !== 5) { // Another peer may be up.
      state.turn += 1;
      await sleep(200);
      return read({ ...asked, tries: (asked.tries || 0) + 1 });
    }
    return { ok: false, reason: reason || error.message, first_offset: Number(facts.first_offset || -1) };
  }
  return { ok: true, records, gaps };
}

async function answer(asked) {
  if (asked.do === 'connect') {
    state.addresses = asked.addresses;
    const file = (name) => fs.readFileSync(asked.tls[name]);
    state.credentials = asked.tls
      ? grpc.credentials.createSsl(file('ca'), file('key'), file('certificate'))
      : grpc.credentials.createInsecure();
    await refresh();
    return { ok: true };
  }
  if (asked.do === 'append') return append(asked);
  if (asked.do === 'read') return read(asked);
  if (asked.do === 'hash') {
    return { hash: hash(Buffer.from(asked.key, 'base64')).toString(16).padStart(16, '0') };
  }
  return { unsupported: true };
}

(async () => {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    process.stdout.write(JSON.stringify(await answer(JSON.parse(line))) + '\n');
  }
  process.exit(0);
})();
