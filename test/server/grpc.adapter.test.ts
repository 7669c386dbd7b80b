import { readFileSync } from 'node:fs';
import { once } from 'node:events';
import { connect as connectTcp } from 'node:net';
import { gzipSync } from 'node:zlib';
import { status } from '@grpc/grpc-js';
import {
  ArtifactServiceDefinition,
  GenerateTextRequest,
  GetJobRequest,
  WatchJobRequest,
} from '@relora/sdk/contract';
import { describe, expect, it, onTestFinished } from 'vitest';
import { readDescriptors } from '../../server/dist/grpc/descriptors.js';
import { GrpcServer } from '../../server/dist/grpc/grpcServer.js';
import { errorMiddleware } from '../../server/dist/grpc/middleware.js';
import { EncodedAnswers } from '../../server/dist/grpc/service.js';
import { openApi, readRefusal, type Refusal } from './apiServer.js';
import { readyDataset } from './parts.js';
import { beginCall, framed, NGHTTP2_CANCEL, rawCall, rawClient, rawSession, statusOf } from './rawCalls.js';
import { runServer } from './runningServer.js';

const contract = new URL('../../server/src/generated/relora.binpb', import.meta.url);
const descriptors = readDescriptors(readFileSync(contract));

const getJob = '/relora.v1.TrainingService/GetJob';
const nobody = Buffer.from(GetJobRequest.encode(GetJobRequest.fromPartial({ name: 'jobs/nobody' })).finish());

async function refusalFrom(stream: ReturnType<typeof beginCall>): Promise<Refusal> {
  const { code, message, details } = (await statusOf(stream))!;
  return readRefusal(code, message, details);
}

/** How GetJob ends with these bytes as its message. */
async function refusalOfBytes(bytes: Buffer, path = getJob): Promise<Refusal> {
  const { address } = await openApi();
  const { error } = await rawCall(rawClient(address), path, bytes);
  const details = error?.metadata.get('grpc-status-details-bin')[0] as Buffer | undefined;
  return readRefusal(error!.code, error!.details, details);
}

describe('a message that cannot be read is a mistake of its sender, with its place', () => {
  const bytes = (...values: number[]): Buffer => Buffer.from(values);
  const createJob = '/relora.v1.TrainingService/CreateJob';
  const cases: [string, string, Buffer, string, string][] = [
    ['a length beyond the end', getJob, bytes(0x0a, 0x7f, 0x61), 'name', 'expected 127 bytes, got 1 up to'],
    ['text that is not UTF-8', getJob, bytes(0x0a, 0x02, 0xc3, 0x28), 'name', 'text in UTF-8'],
    ['a field of another type', getJob, bytes(0x08, 0x01), 'name', 'wire type 2'],
    ['a field without a number', getJob, bytes(0x00, 0x01), '', 'a field number'],
    ['a group', getJob, bytes(0x7b, 0x7c), '', 'wire type 0, 1, 2 or 5'],
    ['a number without an end', getJob, Buffer.alloc(11, 0xff), '', 'at most 10 bytes'],
    [
      'something wrong deep inside',
      createJob,
      bytes(0x0a, 0x07, 0x2a, 0x05, 0x82, 0x01, 0x02, 0x10, 0xff),
      'spec.adapter.module_ranks[0].rank',
      'the rest of a number',
    ],
  ];
  for (const [what, path, message, field, expected] of cases) {
    it(what, async () => {
      const refusal = await refusalOfBytes(message, path);
      expect(refusal).toMatchObject({
        code: status.INVALID_ARGUMENT,
        info: { reason: 'MESSAGE_UNREADABLE' },
      });
      expect(refusal.fields).toEqual([field]);
      expect(refusal.message).toContain(expected);
    });
  }

  it('a number beyond 2^53 is a wrong value of its field, the largest exact one is not', async () => {
    const watch = '/relora.v1.TrainingService/WatchJob';
    const asked = WatchJobRequest.encode(
      WatchJobRequest.fromPartial({ name: 'jobs/nobody', afterSequence: 2 ** 53 - 1 }),
    ).finish();
    expect((await refusalOfBytes(Buffer.from(asked), watch)).info.reason).toBe('JOB_NOT_FOUND');
    const beyond = Buffer.concat([nobody, bytes(0x10, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10)]);
    const refusal = await refusalOfBytes(beyond, watch);
    expect(refusal).toMatchObject({ code: status.INVALID_ARGUMENT, fields: ['after_sequence'] });
    expect(refusal.message).toContain('got 9007199254740992');
    const below = Buffer.concat([nobody, bytes(0x10), Buffer.alloc(6, 0x80), bytes(0x80, 0xf0, 0xff, 0x01)]);
    expect((await refusalOfBytes(below, watch)).info.reason).toBe('REQUEST_INVALID');
  });

  it('a text with NUL, which no store holds, also where a list is only searched for it', async () => {
    const audit = '/relora.v1.ServerService/ListAuditEntries';
    const { code, fields, message } = await refusalOfBytes(bytes(0x22, 0x03, 0x61, 0x00, 0x62), audit);
    expect([code, fields]).toEqual([status.INVALID_ARGUMENT, ['caller']]);
    expect(message).toBe('caller: expected text without control characters, got U+0000');
  });

  it('a text longer than anybody needs, but a prompt may have 1 MiB', async () => {
    const named = (length: number): Buffer =>
      Buffer.from(GetJobRequest.encode(GetJobRequest.fromPartial({ name: 'x'.repeat(length) })).finish());
    const { info, fields, message } = await refusalOfBytes(named(65_537));
    expect([info.reason, fields]).toEqual(['REQUEST_INVALID', ['name']]);
    expect(message).toBe('name: expected at most 65536 bytes, got 65537');
    expect((await refusalOfBytes(named(65_536))).message).toContain('name: expected jobs/{job}, got "xxx');
    const prompt = (text: string): Buffer =>
      Buffer.from(
        GenerateTextRequest.encode(
          GenerateTextRequest.fromPartial({ model: 'jobs/nobody', prompt: text }),
        ).finish(),
      );
    const generate = '/relora.v1.ModelService/GenerateText';
    expect((await refusalOfBytes(prompt('x'.repeat(1 << 20)), generate)).info.reason).toBe('JOB_NOT_FOUND');
    const tooLong = prompt('\u{1f600}'.repeat(1 << 18) + 'x');
    expect((await refusalOfBytes(tooLong, generate)).message).toBe(
      'prompt: expected at most 1048576 bytes, got 1048577',
    );
  });

  it('messages inside each other without end, and more parts than can be taken', async () => {
    // No message of the contract is recursive; reflection's are checked only to their depth.
    const { address } = await openApi({ RELORA_MESSAGE_FIELDS_MAX: '1000' });
    const compare = async (count: number, ...field: number[]) => {
      const message = Buffer.concat(Array.from({ length: count }, () => bytes(...field)));
      return (await rawCall(rawClient(address), '/relora.v1.TrainingService/CompareJobs', message)).error!;
    };
    const unknown = await compare(1001, 0x78, 0x00);
    expect(unknown).toMatchObject({ code: status.RESOURCE_EXHAUSTED });
    expect(unknown.details).toBe('The message has more than 1000 fields and list entries');
    // A list that is too long is named in the error, whether packed or not.
    expect((await compare(200, 0x0a, 0x00)).details).toContain('names: expected 2 to 16 jobs, got 200');
    const names = await compare(201, 0x0a, 0x00);
    expect(names).toMatchObject({ code: status.INVALID_ARGUMENT });
    expect(names.details).toBe('names: expected at most 200 entries, got more');
    const metrics = bytes(0x1a, 0xc9, 0x01, ...new Array<number>(201).fill(1));
    expect((await compare(1, ...metrics)).details).toBe('metrics: expected at most 200 entries, got more');
  });
});

describe('what grpc-js refuses by itself has a reason and blames nobody else', () => {
  const refusedWith = async (headers: Record<string, string>, body: Buffer): Promise<Refusal> => {
    const stream = beginCall(await rawSession((await openApi()).address), getJob, headers);
    stream.end(body);
    return await refusalFrom(stream);
  };

  it('bytes that do not unpack', async () => {
    expect(await refusedWith({ 'grpc-encoding': 'gzip' }, framed(Buffer.from('no'), true))).toMatchObject({
      code: status.INVALID_ARGUMENT,
      info: { reason: 'MESSAGE_UNREADABLE' },
    });
  });

  it('a bomb', async () => {
    const bomb = framed(gzipSync(Buffer.alloc(64 << 20)), true);
    expect(await refusedWith({ 'grpc-encoding': 'gzip' }, bomb)).toMatchObject({
      code: status.RESOURCE_EXHAUSTED,
      info: { reason: 'MESSAGE_TOO_LARGE' },
    });
  });

  it('a deadline that is none', async () => {
    expect(await refusedWith({ 'grpc-timeout': 'abc' }, framed(nobody))).toMatchObject({
      code: status.INVALID_ARGUMENT,
      info: { reason: 'MESSAGE_UNREADABLE' },
    });
  });

  it('no message, or two of them', async () => {
    for (const body of [Buffer.alloc(0), Buffer.concat([framed(nobody), framed(nobody)])]) {
      expect(await refusedWith({}, body)).toMatchObject({
        code: status.INVALID_ARGUMENT,
        info: { reason: 'MESSAGE_UNREADABLE', metadata: { expected: 'one message' } },
      });
    }
  });
});

describe('an answer that nobody reads', () => {
  // As much as a stream's window takes, and a little more: small messages take more memory than their bytes.
  it.each([
    ['a piece or two', 256 * 1024, 4],
    ['a few dozen small ones', 100, 65_536 / 100 + 100],
  ])('is not made: the handler waits, and holds no more than %s', async (_, bytes, piecesMax) => {
    let pieces = 0;
    let hasEnded = false;
    const endless = async function* () {
      try {
        for (; ; pieces++) yield { data: Buffer.alloc(bytes) };
      } finally {
        hasEnded = true;
      }
    };
    const stream = await callAnsweredBy(endless);
    await once(stream, 'response');
    // Until nothing more arrives.
    for (let last = -1; last !== pieces;) {
      last = pieces;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    expect(pieces).toBeLessThan(piecesMax);
    // When read, it continues.
    stream.resume();
    const before = pieces;
    while (pieces < before + 10 * piecesMax) await new Promise((resolve) => setImmediate(resolve));
    // When canceled, it ends.
    stream.close(NGHTTP2_CANCEL);
    while (!hasEnded) await new Promise((resolve) => setImmediate(resolve));
  });

  it('ends its call, also after some of it was taken', async () => {
    // A window takes the first one and few of the others, which are one write.
    const answers = [1, 300_000, 300_000].map((bytes) => Buffer.alloc(bytes));
    const settings = { RELORA_READER_SILENCE_SECONDS: '0.3' };
    const stream = await callAnsweredBy(async function* () {
      yield new EncodedAnswers(answers);
    }, settings);
    await once(stream, 'close');
    expect(stream.rstCode).toBe(NGHTTP2_CANCEL);
  });
});

/** A call on a server whose methods have this handler. */
async function callAnsweredBy(
  handler: () => AsyncGenerator<unknown>,
  settings: Record<string, string> = {},
): Promise<ReturnType<typeof beginCall>> {
  const { parts } = await openApi(settings);
  const server = new GrpcServer({
    config: parts.config,
    descriptors,
    middleware: [errorMiddleware(parts.log, parts.config)],
    stopping: new AbortController().signal,
  });
  const names = Object.keys(ArtifactServiceDefinition.methods);
  const handlers = Object.fromEntries(names.map((name) => [name, handler]));
  server.add(ArtifactServiceDefinition, handlers as never);
  const port = await server.listen({ host: '127.0.0.1', port: 0 });
  onTestFinished(() => server.close());
  const path = '/relora.v1.ArtifactService/DownloadArtifact';
  const stream = beginCall(await rawSession(`127.0.0.1:${port}`), path);
  stream.end(framed(Buffer.alloc(0)));
  return stream;
}

describe('a stop', () => {
  it('waits neither for a silent upload nor for a request that does not come', async () => {
    // Waiting for a silent client would exceed a test's time limit.
    const { server } = await runServer({ RELORA_REQUEST_SILENCE_SECONDS: '3600' });
    const session = await rawSession(server.grpcAddress);
    const silent = [
      '/relora.v1.DatasetService/UploadDataset',
      '/relora.v1.WeightsService/UploadWeights',
      getJob,
    ].map((path) => beginCall(session, path));
    const ends = silent.map(async (stream) => (await statusOf(stream))?.code);
    // The server has processed them when it answers a later request.
    const probe = beginCall(session, getJob);
    probe.end(framed(nobody));
    await statusOf(probe);
    const goneAway = once(session, 'goaway');
    await server.stop();
    expect(await Promise.all(ends)).toEqual(Array(3).fill(status.UNAVAILABLE));
    await goneAway;
  });
});

describe('the port', () => {
  const closed = async (address: string, sent: Buffer | string): Promise<{ text: string; ms: number }> => {
    const [host, port] = address.split(':');
    const socket = connectTcp(Number(port), host);
    onTestFinished(() => void socket.destroy());
    const began = performance.now();
    let text = '';
    socket.on('data', (bytes: Buffer) => (text += bytes.toString('latin1')));
    socket.on('error', () => {});
    socket.write(sent);
    await once(socket, 'close');
    return { text, ms: performance.now() - began };
  };

  it('closes what does not speak HTTP/2, and says so to HTTP/1', async () => {
    const { address } = await openApi();
    expect((await closed(address, 'GET / HTTP/1.1\r\n\r\n')).text).toContain('This port speaks gRPC');
    expect((await closed(address, Buffer.from([0x16, 0x03, 0x01, 0x02]))).text).toBe('');
  });

  it('closes a connection that does not say what it wants in time', async () => {
    const { address } = await openApi({ RELORA_HEADER_SECONDS: '0.2' });
    for (const sent of ['', 'PRI * HTTP/2.0\r\n']) {
      const { ms } = await closed(address, sent);
      expect(ms).toBeGreaterThan(150);
    }
  });

  it('gives the place of the connection that was without a call for longest to a new one', async () => {
    const { address, parts } = await openApi({ RELORA_CONNECTIONS_MAX: '3' });
    await readyDataset(parts);
    const watching = await rawSession(address);
    const watch = beginCall(watching, '/grpc.health.v1.Health/Watch');
    watch.end(framed(Buffer.alloc(0)));
    await once(watch, 'response');
    const idle = [await rawSession(address), await rawSession(address)];
    const firstClosed = once(idle[0]!, 'close');
    const later = beginCall(await rawSession(address), getJob);
    later.end(framed(nobody));
    expect((await refusalFrom(later)).info.reason).toBe('JOB_NOT_FOUND');
    await firstClosed;
    expect([watching.closed, idle[1]!.closed]).toEqual([false, false]);
  });

  it('gives the place of a connection to a new one, also if its calls were reset before they began', async () => {
    const { address } = await openApi({ RELORA_CONNECTIONS_MAX: '1' });
    const socket = connectTcp(Number(address.split(':')[1]), '127.0.0.1');
    onTestFinished(() => void socket.destroy());
    const closed = once(socket, 'close');
    const frame = (type: number, flags: number, stream: number, body: Buffer): Buffer => {
      const head = Buffer.from([0, 0, body.length, type, flags, 0, 0, 0, stream]);
      return Buffer.concat([head, body]);
    };
    const text = (value: string): Buffer => Buffer.from([value.length, ...Buffer.from(value)]);
    // POST, http, the host, the path and the content type, as indexes and texts of HPACK.
    const host = [Buffer.from([0x83, 0x86, 0x01]), text('localhost')];
    const type = [Buffer.from([0x0f, 0x10]), text('application/grpc')];
    const headers = Buffer.concat([...host, Buffer.from([0x04]), text(getJob), ...type]);
    // In one write: the server reads the end of the call together with its beginning, before it hands the call on.
    const [settings, rstStream, ping] = [4, 3, 6];
    socket.write(
      Buffer.concat([
        Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'),
        frame(settings, 0, 0, Buffer.alloc(0)),
        frame(1, 4, 1, headers),
        frame(rstStream, 0, 1, Buffer.alloc(4)), // NO_ERROR: with another code, Node takes the stream off its connection
        frame(ping, 0, 0, Buffer.from('answered')),
      ]),
    );
    let received = '';
    while (!received.includes('answered'))
      received += ((await once(socket, 'data')) as [Buffer])[0].toString('latin1');
    socket.resume();
    const later = beginCall(await rawSession(address), getJob);
    later.end(framed(nobody));
    expect((await refusalFrom(later)).info.reason).toBe('JOB_NOT_FOUND');
    await closed;
  });

  it('answers about health beyond its limit', async () => {
    const { address } = await openApi({ RELORA_CONNECTIONS_MAX: '1' });
    const watch = beginCall(await rawSession(address), '/grpc.health.v1.Health/Watch');
    watch.end(framed(Buffer.alloc(0)));
    await once(watch, 'response');
    const check = beginCall(await rawSession(address), '/grpc.health.v1.Health/Check');
    check.end(framed(Buffer.alloc(0)));
    expect((await statusOf(check))?.code).toBe(status.OK);
  });
});
