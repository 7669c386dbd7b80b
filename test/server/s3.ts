import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { connect } from 'node:net';
import { homedir, tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { afterAll } from 'vitest';
import { freePort } from './postgres.js';

/** An S3 server on a folder; installed by `go install github.com/versity/versitygw/cmd/versitygw@latest`. */
const program = [...(process.env.PATH ?? '').split(delimiter), join(homedir(), 'go/bin')]
  .map((folder) => join(folder, 'versitygw'))
  .find((path) => existsSync(path));

export const hasS3 = program !== undefined;

const rootSecret = 'test-secret';
process.env.AWS_ACCESS_KEY_ID = 'test';
process.env.AWS_SECRET_ACCESS_KEY = rootSecret;

interface S3Server {
  port: number;
  adminPort: number;
  /** Its buckets are subfolders. */
  folder: string;
  stop(): Promise<void>;
}

let server: Promise<S3Server> | undefined;
let bucketCount = 0;

/** A new empty bucket; its server is started for the first one, and ends with the test file. */
export async function freshBucket(): Promise<string> {
  const { port, folder } = await s3Server();
  const bucket = `bucket-${bucketCount++}`;
  mkdirSync(join(folder, bucket));
  return `s3://${bucket}/fleet?endpoint=http://127.0.0.1:${port}`;
}

export async function s3Server(): Promise<S3Server> {
  return await (server ??= startS3());
}

/** Adds a user who may log in but has no access to any bucket. */
export async function addS3User(access: string, secret: string): Promise<void> {
  const { adminPort } = await s3Server();
  const admin = ['admin', '--access', 'test', '--secret', rootSecret];
  const at = ['--endpoint-url', `http://127.0.0.1:${adminPort}`];
  const user = ['create-user', '--access', access, '--secret', secret, '--role', 'user'];
  const { status, stderr } = spawnSync(program!, [...admin, ...at, ...user], { encoding: 'utf8' });
  if (status !== 0) throw new Error(`No user could be made: ${stderr}`);
}

async function startS3(): Promise<S3Server> {
  const root = mkdtempSync(join(tmpdir(), 'relora-s3-'));
  const folder = join(root, 'buckets');
  mkdirSync(folder);
  mkdirSync(join(root, 'meta'));
  mkdirSync(join(root, 'users'));
  const port = await freePort();
  const adminPort = await freePort();
  const child = spawn(
    program!,
    [
      ...['--port', `127.0.0.1:${port}`, '--admin-port', `127.0.0.1:${adminPort}`],
      ...['--iam-dir', join(root, 'users'), '--quiet'],
      ...['posix', '--sidecar', join(root, 'meta'), folder],
    ],
    {
      stdio: 'ignore',
      env: { ROOT_ACCESS_KEY: 'test', ROOT_SECRET_KEY: rootSecret, PATH: process.env.PATH },
    },
  );
  const stop = async (): Promise<void> => {
    if (child.exitCode === null) {
      child.kill('SIGKILL');
      await new Promise((resolve) => child.once('exit', resolve));
    }
    rmSync(root, { recursive: true, force: true });
  };
  for (;;) {
    if (child.exitCode !== null) throw new Error(`The S3 server ended with code ${child.exitCode}`);
    const isListening = await new Promise<boolean>((resolve) => {
      const socket = connect(port, '127.0.0.1');
      socket.once('connect', () => resolve(true)).once('error', () => resolve(false));
      socket.unref();
    });
    if (isListening) return { port, adminPort, folder, stop };
    await new Promise((resolve) => setTimeout(resolve, 20)); // it does not report when it listens
  }
}

afterAll(async () => await (await server)?.stop());
