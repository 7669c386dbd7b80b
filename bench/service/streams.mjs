import { createHash, randomBytes } from 'node:crypto';
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Client, credentials, Metadata } from '@grpc/grpc-js';
import { ReloraClient } from '@relora/sdk';
import { table } from '../table.mjs';
import { fillStore } from './fillStore.mjs';
import { quantile, startBare, startServer, withFolder } from './server.mjs';

const fileBytes = Number(process.env.BENCH_STREAM_BYTES ?? 256e6);
const rounds = Number(process.env.BENCH_ROUNDS ?? 7);
const pieceBytes = 256 * 1024;
const pass = (bytes) => bytes;

/** Downloads and uploads of a large file, alternating with the bare streams, both ends on this machine. */
export async function streams() {
  return await withFolder(async (folder) => {
    const content = randomBytes(fileBytes);
    const dataFolder = join(folder, 'data');
    await fillStore(dataFolder, 1, { artifact: content });
    const source = join(folder, 'source.txt');
    // The server tries to prepare it as text and fails after the upload, which is what is measured.
    writeFileSync(source, content);
    const server = await startServer(dataFolder, { RELORA_UPLOAD_BYTES_MAX: '4000000000' });
    const bare = await startBare();
    const client = new ReloraClient({ address: server.grpcAddress });
    const bareClient = new Client(bare.grpcAddress, credentials.createInsecure(), {
      'grpc.max_receive_message_length': 64 << 20,
    });
    try {
      const target = join(folder, 'target');
      const sides = {
        'bare stream to a client': async () => await bareDownload(bareClient),
        'download, verified and written': async () => {
          await client.downloadArtifact('jobs/job-0/artifacts/model-1', target);
        },
        'bare stream to a server': async () => await bareUpload(bareClient),
        'upload, verified and written': async (round) => {
          await uploadOnly(client, source, `data-${round}`);
        },
      };
      const seconds = Object.fromEntries(Object.keys(sides).map((name) => [name, []]));
      // One uncounted round: computes hashes of the chunks and compiles code.
      for (let round = -1; round < rounds; round++)
        for (const [name, run] of Object.entries(sides)) {
          const beganMs = performance.now();
          await run(round + 1);
          if (round >= 0) seconds[name].push((performance.now() - beganMs) / 1000);
          // Freeing a file's pages takes a third of the time of a download, and must not count.
          rmSync(target, { recursive: true, force: true });
        }
      const rate = (name, share = 0.5) => fileBytes / 1e6 / quantile(seconds[name], share);
      const ratio = (name, base) =>
        quantile(
          seconds[name].map((own, round) => seconds[base][round] / own),
          0.5,
        );
      const row = (name, base) => [
        name,
        rate(name).toFixed(0),
        `${rate(name, 0.99).toFixed(0)} to ${rate(name, 0).toFixed(0)}`,
        base === undefined ? '' : `${(100 * ratio(name, base)).toFixed(0)} %`,
      ];
      return `## Streams of ${fileBytes / 1e6} MB, ${rounds} rounds turn by turn, client and server on the same processors\n\n${table(
        ['what', 'MB/s, median', 'least to most', 'of the bare stream, median of the rounds'],
        [
          row('bare stream to a client'),
          row('download, verified and written', 'bare stream to a client'),
          row('bare stream to a server'),
          row('upload, verified and written', 'bare stream to a server'),
        ],
      )}\n\nSHA-256 alone: ${(fileBytes / 1e6 / hashSeconds(content)).toFixed(0)} MB/s on one processor.`;
    } finally {
      client.close();
      bareClient.close();
      await server.stop();
      await bare.stop();
    }
  });
}

function hashSeconds(content) {
  const beganMs = performance.now();
  createHash('sha256').update(content).digest();
  return (performance.now() - beganMs) / 1000;
}

async function bareDownload(client) {
  const count = Math.ceil(fileBytes / pieceBytes);
  const request = Buffer.from(JSON.stringify({ count, bytes: pieceBytes }));
  let bytes = 0;
  const stream = client.makeServerStreamRequest('/bare/Send', pass, pass, request, new Metadata());
  for await (const data of stream) bytes += data.length;
  if (bytes !== count * pieceBytes) throw new Error(`${bytes} bytes came`);
}

async function bareUpload(client) {
  await new Promise((resolve, reject) => {
    const stream = client.makeClientStreamRequest('/bare/Take', pass, pass, new Metadata(), (error) =>
      error === null ? resolve() : reject(error),
    );
    const send = async () => {
      for (let sent = 0; sent < fileBytes; sent += pieceBytes)
        if (!stream.write(Buffer.alloc(pieceBytes, sent)))
          await new Promise((drained) => stream.once('drain', drained));
      stream.end();
    };
    void send();
  });
}

/** Until the server has stored and verified every byte; its processing afterwards does not count. */
async function uploadOnly(client, path, datasetId) {
  const received = new AbortController();
  const onProgress = ({ phase }) => phase === 'preparing' && received.abort();
  await client
    .uploadDataset({ datasetId, files: [{ path }], onProgress, signal: received.signal })
    .catch((error) => {
      if (!received.signal.aborted && error.reason === undefined) throw error;
    });
}
