import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync, rmSync } from 'node:fs';
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Client, credentials, Metadata } from '@grpc/grpc-js';
import { ReloraClient } from '@relora/sdk';
import { GetJobRequest } from '@relora/sdk/contract';
import { table } from '../table.mjs';
import { fillStore } from './fillStore.mjs';
import { quantile, startServer, withFolder } from './server.mjs';
import { measure } from './unary.mjs';

const rounds = Number(process.env.BENCH_ROUNDS ?? 5);
const fileBytes = Number(process.env.BENCH_STREAM_BYTES ?? 256e6);
const main = fileURLToPath(new URL('../../server/dist/main.js', import.meta.url));
const name = 'jobs/job-0';

/** GetJob and a download in plain text, with a token, over TLS and with both, alternately. */
export async function protection() {
  return await withFolder(async (folder) => {
    const content = randomBytes(fileBytes);
    const [certificate, key, tokens] = ['server.pem', 'server.key', 'tokens.json'].map((file) =>
      join(folder, file),
    );
    const subject = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1'];
    const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', key];
    execFileSync('openssl', ['req', '-x509', ...newKey, '-out', certificate, '-days', '2', ...subject], {
      stdio: 'ignore',
    });
    const environment = { PATH: process.env.PATH, RELORA_DATA_FOLDER: folder, RELORA_TOKEN_FILE: tokens };
    const added = execFileSync(process.execPath, [main, 'token', 'add', 'bench', '--role', 'viewer'], {
      env: environment,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    const token = added.trim();
    const tls = { RELORA_TLS_CERTIFICATE: certificate, RELORA_TLS_KEY: key };
    const login = { RELORA_TOKEN_FILE: tokens };
    const kinds = {
      'plain text, no login': {},
      'a token': login,
      TLS: tls,
      'TLS and a token': { ...tls, ...login },
    };
    const sides = [];
    try {
      for (const [kind, settings] of Object.entries(kinds)) {
        const dataFolder = join(folder, `data-${sides.length}`);
        await fillStore(dataFolder, 1, { artifact: content });
        sides.push(await open(kind, await startServer(dataFolder, settings), settings, certificate, token));
      }
      for (let round = -1; round < rounds; round++)
        for (const side of sides) {
          const target = join(folder, 'target');
          rmSync(target, { recursive: true, force: true });
          mkdirSync(target);
          const { rate, p99, answer } = await measure(side.calls, ...side.request);
          if (answer !== 'OK') throw new Error(`${side.kind}: GetJob answered ${answer}`);
          const beganMs = performance.now();
          await side.client.downloadArtifact(`${name}/artifacts/model-1`, target);
          const bytesPerSecond = fileBytes / ((performance.now() - beganMs) / 1000);
          if (round >= 0) side.rounds.push({ rate, p99, bytesPerSecond });
        }
    } finally {
      for (const { close } of sides) await close();
    }
    const median = (side, what) =>
      quantile(
        side.rounds.map((round) => round[what]),
        0.5,
      );
    const share = (side, what) =>
      quantile(
        side.rounds.map((round, index) => round[what] / sides[0].rounds[index][what]),
        0.5,
      );
    const percent = (value) => `${(100 * value).toFixed(0)} %`;
    return `## What TLS and a login cost, ${rounds} rounds turn by turn\n\n${table(
      ['server', 'GetJob/s', 'p99 ms', 'of plain', 'download MB/s', 'of plain'],
      sides.map((side) => [
        side.kind,
        median(side, 'rate').toFixed(0),
        median(side, 'p99').toFixed(1),
        percent(share(side, 'rate')),
        (median(side, 'bytesPerSecond') / 1e6).toFixed(0),
        percent(share(side, 'bytesPerSecond')),
      ]),
    )}`;
  });
}

async function open(kind, server, settings, certificate, token) {
  const hasTls = settings.RELORA_TLS_KEY !== undefined;
  const hasLogin = settings.RELORA_TOKEN_FILE !== undefined;
  const address = `localhost:${server.grpcAddress.split(':')[1]}`;
  const rootCertificates = readFileSync(certificate);
  const metadata = new Metadata();
  if (hasLogin) metadata.set('authorization', `Bearer ${token}`);
  const calls = new Client(
    address,
    hasTls ? credentials.createSsl(rootCertificates) : credentials.createInsecure(),
  );
  const client = new ReloraClient({
    address: hasTls ? `https://${address}` : address,
    ...(hasTls ? { tls: { rootCertificates } } : {}),
    ...(hasLogin ? { token } : {}),
  });
  const bytes = Buffer.from(GetJobRequest.encode({ name }).finish());
  return {
    kind,
    calls,
    client,
    request: ['/relora.v1.TrainingService/GetJob', bytes, metadata],
    rounds: [],
    close: async () => {
      client.close();
      calls.close();
      await server.stop();
    },
  };
}
