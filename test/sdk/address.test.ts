import { ReloraClient } from '@relora/sdk';
import { afterEach, expect, test, vi } from 'vitest';
import { patienceMs } from '../patience.mjs';
import { realServer } from './realServer.js';

afterEach(() => vi.unstubAllEnvs());

test.each([
  '127.0.0.1:50051',
  'localhost:1',
  '[::1]:50051',
  'relora.example:443',
  'https://relora.example:443',
  '127.0.0.1:50051,[::1]:50052, relora.example:50053',
])('%s is an address', (address) => {
  expect(new ReloraClient({ address }).address).toBe(address);
});

test.each([
  'grpc://127.0.0.1:50051',
  '127.0.0.1:99999',
  '127.0.0.1:0',
  '127.0.0.1:50051/',
  '127.0.0.1',
  '::1:50051',
  'host name:50051',
  ' ',
])('%j is malformed, which is said before anything is tried', (address) => {
  expect(() => new ReloraClient({ address })).toThrow(
    expect.objectContaining({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining(
        `${JSON.stringify(address)} is malformed: expected host:port`,
      ) as string,
    }),
  );
});

test('addresses of one list are all with TLS, or none', () => {
  expect(() => new ReloraClient({ address: 'https://a:1,b:1' })).toThrow(/must all begin with https/);
  expect(() => new ReloraClient({ address: '127.0.0.1:1,' })).toThrow(/"" is malformed/);
});

test('an empty address is one that is not set', () => {
  vi.stubEnv('RELORA_ADDRESS', '');
  expect(new ReloraClient({ address: '' }).address).toBe('127.0.0.1:50051');
  vi.stubEnv('RELORA_ADDRESS', 'other:1234');
  expect(new ReloraClient({ address: '' }).address).toBe('other:1234');
});

test('a server on this machine is reached past a proxy, and one elsewhere is not reached in its name', async () => {
  vi.stubEnv('http_proxy', 'http://name:secret@127.0.0.1:9');
  const { client } = await realServer();
  expect((await client.serverInfo({ deadlineMs: patienceMs })).version).not.toBe('');

  using elsewhere = new ReloraClient({ address: 'relora.invalid:50051', retries: { attemptsMax: 1 } });
  const error = await elsewhere.serverInfo().then(Promise.reject, (error: Error) => error);
  expect(error).toMatchObject({ code: 'UNAVAILABLE' });
  expect(error.message).toContain('through the proxy http://127.0.0.1:9 of http_proxy');
  expect(error.message).not.toContain('secret');

  vi.stubEnv('no_proxy', '.invalid');
  using past = new ReloraClient({ address: 'relora.invalid:50051', retries: { attemptsMax: 1 } });
  await expect(past.serverInfo()).rejects.toThrow(/^((?!proxy).)*$/);
});
