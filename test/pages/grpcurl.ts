// Replaces grpcurl if that is not installed: the same arguments, with the contract only by reflection.
import { text } from 'node:stream/consumers';
import { status } from '@grpc/grpc-js';
import { dynamicClient, reflect } from '../e2e/reflectedClient.js';

const args = process.argv.slice(2);
const fail = (message: string, code = 2): never => {
  process.stderr.write(`${message}\n`);
  process.exit(code);
};
if (args.shift() !== '-plaintext') fail('-plaintext is expected first');
const data = args[0] === '-d' ? args.splice(0, 2)[1]! : '';
const [address, target] = args as [string, string];
const { serviceNames, descriptorSet } = await reflect(address, 'v1');
if (target === 'list') {
  process.stdout.write(`${serviceNames.sort().join('\n')}\n`);
  process.exit(0);
}

/** Concatenated JSON texts. When created from descriptors, protobufjs represents maps only as lists of entries. */
function parseMessages(json: string): object[] {
  const entries = (key: string, value: unknown) =>
    key === 'labels'
      ? Object.entries(value as object).map(([key, value]) => ({ key, value: value as unknown }))
      : value;
  return JSON.parse(`[${json.replace(/\}\s*\n\s*\{/g, '},{')}]`, entries) as object[];
}

/** Names as in protobuf's JSON, bytes in base64, without fields that have their default. */
function toJson(value: unknown): unknown {
  if (Buffer.isBuffer(value)) return value.toString('base64');
  if (Array.isArray(value)) return value.map(toJson);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .filter(([, each]) => !isUnset(each))
      .map(([key, each]) => [
        key.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase()),
        toJson(each),
      ]),
  );
}

function isUnset(value: unknown): boolean {
  return (
    value === null ||
    value === '' ||
    value === 0 ||
    value === '0' ||
    value === false ||
    (Array.isArray(value) && value.length === 0)
  );
}

const print = (answer: unknown) => process.stdout.write(`${JSON.stringify(toJson(answer), null, 2)}\n`);
const [service, method] = target.split('/') as [string, string];
const client = dynamicClient(descriptorSet, service, address);
const requests = parseMessages(data === '@' ? await text(process.stdin) : data || '{}');
try {
  // The descriptors say which direction streams.
  const { requestStream, responseStream } = client[method] as unknown as Record<string, boolean>;
  if (requestStream) {
    const answer = await new Promise((resolve, reject) => {
      const call = client[method]!((error: Error | null, answer: unknown) =>
        error ? reject(error) : resolve(answer),
      );
      for (const request of requests) call.write(request);
      call.end();
    });
    print(answer);
  } else if (responseStream) {
    for await (const answer of client[method]!(requests[0])) print(answer);
  } else {
    const answer = await new Promise((resolve, reject) => {
      client[method]!(requests[0], (error: Error | null, answer: unknown) =>
        error ? reject(error) : resolve(answer),
      );
    });
    print(answer);
  }
} catch (error) {
  const { code, details } = error as { code: status; details: string };
  const name = status[code]!.toLowerCase().replace(/(^|_)([a-z])/g, (_, __, letter: string) =>
    letter.toUpperCase(),
  );
  fail(`ERROR:\n  Code: ${name}\n  Message: ${details}`, 64 + code);
}
client.close();
