import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { Status } from 'nice-grpc';
import { describe, expect, it, onTestFinished } from 'vitest';
import { serviceErrors } from '../../server/dist/errors.js';
import { openApi } from './apiServer.js';
import { beginCall, framed, rawSession, statusOf } from './rawCalls.js';
import { runServer } from './runningServer.js';

function framesOf(bytes: Buffer): { type: number; flags: number; body: Buffer }[] {
  const frames: { type: number; flags: number; body: Buffer }[] = [];
  for (let at = 0; at + 9 <= bytes.length;) {
    const length = bytes.readUIntBE(at, 3);
    if (at + 9 + length > bytes.length) break;
    frames.push({
      type: bytes[at + 3]!,
      flags: bytes[at + 4]!,
      body: bytes.subarray(at + 9, at + 9 + length),
    });
    at += 9 + length;
  }
  return frames;
}

describe('one client', () => {
  it('that floods its connection with PINGs loses it, though it reads every answer, and others are answered', async () => {
    const { address, server } = await openApi({ RELORA_PINGS_PER_SECOND_MAX: '200' });
    const socket = connect(Number(address.split(':')[1]), '127.0.0.1');
    onTestFinished(() => void socket.destroy());
    const closed = once(socket, 'close');
    socket.on('error', () => {});
    socket.write('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
    socket.write(Buffer.from([0, 0, 0, 4, 0, 0, 0, 0, 0])); // SETTINGS
    const ping = Buffer.from([0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    const batch = Buffer.concat(Array.from({ length: 100 }, () => ping));
    let [received, sent] = [Buffer.alloc(0), 0];
    // Never more than a hundred without an answer, which neither Node nor nghttp2 limits.
    socket.on('data', (data: Buffer) => {
      received = Buffer.concat([received, data]);
      const answered = framesOf(received).filter(({ type, flags }) => type === 6 && flags === 1).length;
      if (answered < sent || sent >= 5000) return;
      sent += 100;
      socket.write(batch);
    });
    await closed;
    expect(sent).toBeLessThan(1000);
    const goaway = framesOf(received).find(({ type }) => type === 7);
    expect(goaway?.body.readUInt32BE(4)).toBe(11); // ENHANCE_YOUR_CALM
    expect((await server.getServerInfo({})).version).toBe('1.2.3');
  });

  it('that pings now and then keeps its connection', async () => {
    const { address } = await openApi({ RELORA_PINGS_PER_SECOND_MAX: '50' });
    const session = await rawSession(address);
    for (let sent = 0; sent < 30; sent++)
      await new Promise<void>((resolve, reject) => {
        session.ping((error) => (error === null ? resolve() : reject(error)));
      });
    expect(session.destroyed).toBe(false);
  });

  it('that begins calls and resets them at once loses its connection, and others are answered', async () => {
    const { address, server } = await openApi({ RELORA_RESETS_PER_SECOND_MAX: '100' });
    const session = await rawSession(address);
    // Not with events.once, which rejects on the error that a session reports then.
    const goaway = new Promise<number>((resolve) => session.once('goaway', resolve));
    const closed = new Promise<void>((resolve) => session.once('close', resolve));
    let begun = 0;
    const resetSome = (): void => {
      for (let count = 0; count < 20 && !session.destroyed; count++, begun++)
        beginCall(session, '/relora.v1.ServerService/GetServerInfo').close(8);
      if (!session.destroyed && begun < 5000) setImmediate(resetSome);
    };
    resetSome();
    expect(await goaway).toBe(11); // ENHANCE_YOUR_CALM
    await closed;
    expect((await server.getServerInfo({})).version).toBe('1.2.3');
  });

  it('that gives up as many calls as it may keeps its connection', async () => {
    const { address } = await openApi({ RELORA_RESETS_PER_SECOND_MAX: '100' });
    const session = await rawSession(address);
    for (let count = 0; count < 60; count++) {
      const stream = beginCall(session, '/relora.v1.ServerService/GetServerInfo');
      stream.close(8);
      await once(stream, 'close');
    }
    const last = beginCall(session, '/grpc.health.v1.Health/Check');
    const status = statusOf(last);
    last.end(framed(Buffer.alloc(0)));
    last.resume();
    expect((await status)?.code).toBe(Status.OK);
  });

  it('has headers as long as it may, on both ports, and no longer', async () => {
    const { server, fetch } = await runServer({
      RELORA_METADATA_BYTES_MAX: '2048',
      RELORA_HTTP_HEADER_BYTES_MAX: '4096',
    });
    const session = await rawSession(server.grpcAddress);
    const check = async (note: string): Promise<Status | undefined> => {
      const stream = beginCall(session, '/relora.v1.ServerService/GetServerInfo', { note });
      const status = statusOf(stream);
      stream.end(framed(Buffer.alloc(0)));
      stream.resume();
      return (await status)?.code;
    };
    expect(await check('x'.repeat(1000))).toBe(Status.OK);
    expect(await check('x'.repeat(3000))).toBe(Status.RESOURCE_EXHAUSTED);
    const over = async (bytes: number) =>
      (await fetch('/healthz', { headers: { note: 'x'.repeat(bytes) } })).status;
    expect(await over(3000)).toBe(200);
    expect(await over(8000)).toBe(431);
    // Endless headers: none of them is stored.
    const socket = connect(Number(server.httpAddress.split(':')[1]), '127.0.0.1');
    onTestFinished(() => void socket.destroy());
    let answer = '';
    socket.on('data', (data: Buffer) => (answer += data.toString('latin1'))).on('error', () => {});
    socket.write(`GET /healthz HTTP/1.1\r\nhost: localhost\r\nnote: ${'x'.repeat(100_000)}`);
    await once(socket, 'close');
    expect(answer).toMatch(/^HTTP\/1\.1 431 /);
  });

  it('that reads nothing of what it asks for is cut', async () => {
    const { address, server } = await openApi({ RELORA_READER_SILENCE_SECONDS: '0.5' });
    const session = await rawSession(address);
    const stream = beginCall(session, '/grpc.reflection.v1.ServerReflection/ServerReflectionInfo');
    // A request of a few bytes whose answer contains the contract.
    const symbol = 'relora.v1.TrainingService';
    const question = framed(Buffer.concat([Buffer.from([0x22, symbol.length]), Buffer.from(symbol)]));
    for (let asked = 0; asked < 2000; asked++) stream.write(question);
    const [code] = (await once(stream, 'close').then(() => [stream.rstCode])) as [number];
    expect(code).toBe(8); // CANCEL
    // Its connection and those of others are unaffected.
    expect(session.destroyed).toBe(false);
    expect((await server.getServerInfo({})).version).toBe('1.2.3');
  });

  it('that reads slowly is served to the end', async () => {
    const { address } = await openApi({ RELORA_READER_SILENCE_SECONDS: '0.5' });
    const stream = beginCall(
      await rawSession(address),
      '/grpc.reflection.v1.ServerReflection/ServerReflectionInfo',
    );
    const symbol = 'relora.v1.TrainingService';
    const question = framed(Buffer.concat([Buffer.from([0x22, symbol.length]), Buffer.from(symbol)]));
    for (let asked = 0; asked < 60; asked++) stream.write(question);
    stream.end();
    const status = statusOf(stream);
    let read = 0;
    for await (const data of stream) {
      read += (data as Buffer).length;
      await new Promise((resolve) => setTimeout(resolve, 20)); // much slower than the server
    }
    expect(read).toBeGreaterThan(1_000_000);
    expect((await status)?.code).toBe(Status.OK);
  });

  it('has as many connections from one address as it may, on both ports', async () => {
    const { server, fetch } = await runServer({ RELORA_ADDRESS_CONNECTIONS_MAX: '3' });
    for (const address of [server.grpcAddress, server.httpAddress]) {
      const open: Socket[] = [];
      for (let index = 0; index < 3; index++) {
        const socket = connect(Number(address.split(':')[1]), '127.0.0.1');
        onTestFinished(() => void socket.destroy());
        await once(socket, 'connect');
        open.push(socket);
      }
      const fourth = connect(Number(address.split(':')[1]), '127.0.0.1');
      fourth.on('error', () => {});
      await once(fourth, 'close');
      open.forEach((socket) => socket.destroy());
      await Promise.all(open.map(async (socket) => await once(socket, 'close')));
    }
    // Closed connections no longer count.
    for (;;) {
      const answer = await fetch('/healthz').catch(() => undefined);
      if (answer?.status === 200) break;
    }
  });
});

it('what is cut has an entry in the catalog', () => {
  expect(serviceErrors.CLIENT_NOT_READING.status).toBe(Status.ABORTED);
});
