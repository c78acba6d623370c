// A client of grpc-js that makes the calls that it is told to make: see ../../driven.py for what the lines hold.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const readline = require('node:readline');
const tls = require('node:tls');
const grpc = require('@grpc/grpc-js');

const folder = process.argv[2];
const channels = new Map();
const calls = new Map();
const same = (bytes) => bytes;
let files = 0;

const say = (line) => process.stdout.write(JSON.stringify(line) + '\n');

function toBytes(said) {
  return said.file === undefined ? Buffer.from(said.base64, 'base64') : fs.readFileSync(said.file);
}

// What is large goes by a file that the reader removes.
function toAnswer(bytes) {
  if (bytes.length <= 32768) return { base64: bytes.toString('base64') };
  const file = path.join(folder, `node-${files++}`);
  fs.writeFileSync(file, bytes);
  return { file };
}

function toMetadata(pairs) {
  const metadata = new grpc.Metadata();
  for (const [key, value] of pairs) metadata.add(key, key.endsWith('-bin') ? Buffer.from(value, 'base64') : value);
  return metadata;
}

function toPairs(metadata) {
  const pairs = [];
  for (const key of Object.keys(metadata?.getMap() ?? {})) {
    for (const value of metadata.get(key)) pairs.push([key, Buffer.isBuffer(value) ? value.toString('base64') : value]);
  }
  return pairs;
}

function credentials(wanted) {
  if (!wanted) return grpc.credentials.createInsecure();
  const pem = { ca: wanted.ca, cert: wanted.certificate ?? undefined, key: wanted.key ?? undefined };
  const versions = wanted.version ? { minVersion: wanted.version, maxVersion: wanted.version } : {};
  return grpc.credentials.createFromSecureContext(tls.createSecureContext({ ...pem, ...versions }));
}

const ALGORITHMS = { deflate: 1, gzip: 2 };

function open({ channel, target, tls: wanted, compression, options }) {
  const settings = {
    'grpc.max_receive_message_length': -1,
    'grpc.max_send_message_length': -1,
    // Channels to the same place have connections of their own.
    'grpc.use_local_subchannel_pool': 1,
    ...options,
  };
  if (compression) settings['grpc.default_compression_algorithm'] = ALGORITHMS[compression];
  channels.set(channel, new grpc.Client(target, credentials(wanted), settings));
}

function begin({ id, channel, kind, path: method, messages, metadata, timeout, cancel_after_answers: cancelAfter }) {
  const client = channels.get(channel);
  const outcome = { id, answers: [], initial: [] };
  const head = [method, same, same];
  const rest = [toMetadata(metadata), timeout ? { deadline: Date.now() + timeout * 1000 } : {}];
  const requests = messages.map(toBytes);
  const take = (answer) => {
    outcome.answers.push(toAnswer(answer));
    if (outcome.answers.length === cancelAfter) call.cancel();
  };
  // Errors come with the status as well.
  const taken = (error, answer) => error || take(answer);
  let call;
  if (kind === 'unary') call = client.makeUnaryRequest(...head, requests[0], ...rest, taken);
  else if (kind === 'server_stream') call = client.makeServerStreamRequest(...head, requests[0], ...rest);
  else if (kind === 'client_stream') call = client.makeClientStreamRequest(...head, ...rest, taken);
  else call = client.makeBidiStreamRequest(...head, ...rest);
  calls.set(id, call);
  if (kind.endsWith('server_stream') || kind === 'bidi') call.on('data', take).on('error', () => {});
  call.on('metadata', (initial) => (outcome.initial = toPairs(initial)));
  call.on('status', (status) => {
    calls.delete(id);
    const end = { code: status.code, message: status.details, trailing: toPairs(status.metadata) };
    // The callback of a unary call comes after its status.
    setImmediate(() => say({ ...outcome, ...end }));
  });
  if (kind === 'client_stream' || kind === 'bidi') {
    for (const request of requests) call.write(request);
    call.end();
  }
}

const COMMANDS = {
  open,
  begin,
  cancel: ({ call }) => calls.get(call)?.cancel(),
  close: ({ channel }) => channels.get(channel).close(),
};

say({ version: require('@grpc/grpc-js/package.json').version });
readline
  .createInterface({ input: process.stdin })
  .on('line', (line) => {
    const command = JSON.parse(line);
    COMMANDS[command.do](command);
  })
  .on('close', () => process.exit(0));
