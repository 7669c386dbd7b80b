import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { ReloraClient } from '@relora/sdk';
import { expect, it, onTestFinished } from 'vitest';
import { startServerProcess } from '../e2e/serverProcess.js';
import { patienceMs } from '../patience.mjs';
import { temporaryFolder } from './parts.js';

function frame(type: number, flags: number, stream: number, body: Buffer = Buffer.alloc(0)): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(body.length, 0, 3);
  head.writeUIntBE(type, 3, 1);
  head.writeUIntBE(flags, 4, 1);
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, body]);
}

const [data, headers, priority, reset, settings, windowUpdate, continuation] = [0, 1, 2, 3, 4, 8, 9];
const [ack, endHeaders] = [1, 4];
const number = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
};

/** An HPACK integer in the last bits of its first byte. */
function packed(value: number, bits: number): Buffer {
  const most = (1 << bits) - 1;
  if (value < most) return Buffer.from([value]);
  const bytes = [most];
  for (value -= most; value >= 128; value >>= 7) bytes.push((value & 127) | 128);
  return Buffer.from([...bytes, value]);
}

const text = (value: string): Buffer => Buffer.concat([packed(value.length, 7), Buffer.from(value)]);
/** `kept`: added to the dynamic table, so that later headers may refer to it by index. */
const header = (name: string, value: string, kept = false): Buffer =>
  Buffer.concat([Buffer.from([kept ? 0x40 : 0]), text(name), text(value)]);

const call = (method = 'ServerService/GetServerInfo'): Buffer =>
  Buffer.concat([
    ...[header(':method', 'POST'), header(':scheme', 'http'), header(':path', `/relora.v1.${method}`)],
    ...[header(':authority', 'x'), header('content-type', 'application/grpc'), header('te', 'trailers')],
  ]);

/** The client opens a stream and then makes the server reset it, which limits on the client's own resets do not count. */
const begun = (index: number, ...then: Buffer[]): Buffer =>
  Buffer.concat([frame(headers, endHeaders, 2 * index + 1, call()), ...then]);

/** Frames that a client may send endlessly, by index. Null: its connection may stay open, since it costs almost nothing. */
const floods: [name: string, count: number, isCut: boolean, make: (index: number) => Buffer][] = [
  ['PRIORITY', 20_000, false, (index) => frame(priority, 0, 2 * index + 1, Buffer.from([0, 0, 0, 0, 16]))],
  ['WINDOW_UPDATE', 20_000, false, () => frame(windowUpdate, 0, 0, number(1))],
  ['frames of no known type', 20_000, false, () => frame(0x55, 0, 0, Buffer.from('x'))],
  ['SETTINGS', 20_000, true, () => frame(settings, 0, 0)],
  ['acknowledgments of SETTINGS', 20_000, true, () => frame(settings, ack, 0)],
  ['resets of no stream', 20_000, true, (index) => frame(reset, 0, 2 * index + 1, number(8))],
  [
    'empty DATA',
    50_000,
    true,
    (index) =>
      index === 0 ? frame(headers, endHeaders, 1, call('DatasetService/UploadDataset')) : frame(data, 0, 1),
  ],
  [
    'headers without end',
    20_000,
    true,
    (index) =>
      index === 0
        ? frame(headers, 0, 1, call())
        : frame(continuation, 0, 1, header(`x-${index}`, 'y'.repeat(100))),
  ],
  [
    'headers without end and with nothing in them',
    20_000,
    true,
    (index) => (index === 0 ? frame(headers, 0, 1, call()) : frame(continuation, 0, 1)),
  ],
  [
    // Four kilobytes that are referenced 8,000 times in each call: 60 GB decompressed.
    'headers that unpack to much more',
    2000,
    false,
    (index) =>
      index === 0
        ? frame(headers, endHeaders, 1, Buffer.concat([call(), header('a', 'b'.repeat(3900), true)]))
        : frame(headers, endHeaders, 2 * index + 1, Buffer.concat([call(), Buffer.alloc(8000, 0xbe)])),
  ],
  ['calls that are reset', 50_000, true, (index) => begun(index, frame(reset, 0, 2 * index + 1, number(8)))],
  [
    'calls that the server has to reset, by a window of 0',
    50_000,
    true,
    (index) => begun(index, frame(windowUpdate, 0, 2 * index + 1, number(0))),
  ],
  [
    'calls that the server has to reset, by a window without end',
    50_000,
    true,
    (index) => begun(index, frame(windowUpdate, 0, 2 * index + 1, number(2 ** 31 - 1))),
  ],
];

/** Sends until everything is sent or the connection is closed; returns whether it was closed. */
async function flood(socket: Socket, count: number, make: (index: number) => Buffer): Promise<boolean> {
  let isCut = false;
  const cut = new Promise<void>((resolve) => socket.once('close', () => resolve()));
  void cut.then(() => (isCut = true));
  for (let index = 0; index < count && !isCut;) {
    const batch = Array.from({ length: Math.min(100, count - index) }, () => make(index++));
    if (!socket.write(Buffer.concat(batch))) await Promise.race([cut, once(socket, 'drain').catch(() => {})]);
  }
  // The connection may be closed a moment after everything was sent: a PING is answered after all of it, or never.
  if (!isCut) {
    const answered = new Promise<void>((resolve) => {
      socket.on('data', (bytes: Buffer) => bytes.includes(Buffer.from('answered')) && resolve());
    });
    socket.write(frame(6, 0, 0, Buffer.from('answered')));
    await Promise.race([cut, answered]);
  }
  return isCut;
}

it.skipIf(process.platform !== 'linux')(
  'a flood of any frames costs the server little, and others are answered meanwhile',
  async () => {
    const server = await startServerProcess(temporaryFolder());
    const client = new ReloraClient({ address: server.grpcAddress });
    onTestFinished(() => client.close());
    await client.serverInfo(); // by now devices are measured
    const { pid } = server.process;
    const processorMs = (): number => {
      const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]!.split(' ');
      return 10 * (Number(fields[11]) + Number(fields[12]));
    };
    const megabytes = (): number =>
      Number(/^VmHWM:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]) / 1000;
    const found: Record<string, object> = {};
    for (const [name, count, isCut, make] of floods) {
      const socket = connect(Number(server.grpcAddress.split(':')[1]), '127.0.0.1');
      onTestFinished(() => void socket.destroy());
      socket.on('error', () => {}).on('data', () => {});
      await once(socket, 'connect');
      socket.write('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
      socket.write(frame(settings, 0, 0));
      const [beforeMs, before] = [processorMs(), megabytes()];
      const [wasCut, info] = await Promise.all([flood(socket, count, make), client.serverInfo()]);
      const [tookMs, grown] = [processorMs() - beforeMs, megabytes() - before];
      found[name] = { wasCut, tookMs, grown };
      expect(info.version).not.toBe('');
      if (isCut) expect(wasCut, name).toBe(true);
      expect(tookMs, `${name} in processor time`).toBeLessThan(3000);
      expect(grown, `${name} in memory`).toBeLessThan(64);
      socket.destroy();
    }
    if (process.env.RELORA_TEST_FIGURES) console.log(found);
  },
  patienceMs,
);
