import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { connect } from 'node:net';
import { GetServerInfoRequest, JobState } from '@relora/sdk/contract';
import { describe, expect, it, onTestFinished } from 'vitest';
import { readConfig } from '../../server/dist/config.js';
import { connectionsWithin } from '../../server/dist/openFiles.js';
import { clientsOf, createTinyJob, uploadTinyText } from '../e2e/watchedJob.js';
import { temporaryFolder } from './parts.js';
import { rawCall, rawClient } from './rawCalls.js';

const main = fileURLToPath(new URL('../../server/dist/main.js', import.meta.url));

describe('the limit of open files', () => {
  it('leaves as many connections as nothing else may need', () => {
    const config = readConfig({});
    expect(connectionsWithin(config, null)).toBe(1000);
    expect(connectionsWithin(config, 1_048_576)).toBe(1000);
    const within = connectionsWithin(config, 1024);
    expect(within).toBeGreaterThan(500);
    expect(connectionsWithin(config, 900)).toBe(within - 124);
    expect(() => connectionsWithin(config, 300)).toThrow('ulimit -n');
  });

  it('is not reached by half-open connections to both ports: jobs run and export, and the server stays', async () => {
    const child = spawn('/bin/sh', ['-c', `ulimit -n 512 && exec ${process.execPath} ${main}`], {
      env: {
        PATH: process.env.PATH,
        RELORA_DATA_FOLDER: temporaryFolder(),
        RELORA_GRPC_ADDRESS: '127.0.0.1:0',
        RELORA_HTTP_ADDRESS: '127.0.0.1:0',
        RELORA_FREE_DISK_BYTES_MIN: '0',
        RELORA_THREADS: '1',
      },
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    onTestFinished(() => void child.kill('SIGKILL'));
    let exitCode: number | null | undefined;
    child.once('exit', (code) => (exitCode = code));
    const logged: { level: number; msg: string }[] = [];
    const { grpcAddress, httpAddress } = await new Promise<{ grpcAddress: string; httpAddress: string }>(
      (resolve) => {
        createInterface({ input: child.stdout }).on('line', (line) => {
          const entry = JSON.parse(line) as { level: number; msg: string; grpcAddress?: string };
          logged.push(entry);
          if (entry.grpcAddress !== undefined) resolve(entry as never);
        });
      },
    );
    expect(logged.map(({ msg }) => msg)).toContain(
      'The limit of open files allows fewer connections than the settings',
    );
    const preface = 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0';
    const flood = (address: string, text: string): void => {
      const [host, port] = address.split(':');
      for (let count = 0; count < 600; count++) {
        const socket = connect(Number(port), host);
        socket.on('error', () => {});
        socket.write(text);
        onTestFinished(() => void socket.destroy());
      }
    };
    flood(grpcAddress, preface);
    flood(httpAddress, 'GET /metrics HTTP/1.1\r\n');

    const clients = clientsOf(grpcAddress);
    await uploadTinyText(clients);
    const name = await createTinyJob(clients, 20);
    for await (const { event } of clients.training.watchJob({ name })) if (event?.final) break;
    const { job } = await clients.training.getJob({ name });
    expect(job?.state).toBe(JobState.SUCCEEDED);
    expect((await fetch(`http://${httpAddress}/healthz`)).status).toBe(200);
    const info = Buffer.from(GetServerInfoRequest.encode({}).finish());
    const { error } = await rawCall(rawClient(grpcAddress), '/relora.v1.ServerService/GetServerInfo', info);
    expect(error).toBeUndefined();
    expect(exitCode).toBeUndefined();
    expect(logged.filter(({ level }) => level >= 50)).toEqual([]);
  });
});
