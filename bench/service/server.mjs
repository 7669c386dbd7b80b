import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const main = fileURLToPath(new URL('../../server/dist/main.js', import.meta.url));
const bare = fileURLToPath(new URL('./bareServer.mjs', import.meta.url));

/** Starts a program whose first line with `grpcAddress` contains its address. */
async function start(args, env) {
  const beganMs = performance.now();
  const child = spawn(process.execPath, args, { env, stdio: ['ignore', 'pipe', 'inherit'] });
  const exited = new Promise((resolve) => child.once('exit', resolve));
  const said = await new Promise((resolve, reject) => {
    createInterface({ input: child.stdout }).on('line', (line) => {
      const entry = JSON.parse(line);
      if (entry.grpcAddress !== undefined) resolve(entry);
    });
    void exited.then((code) => reject(new Error(`The server ended with ${code}`)));
  });
  const stop = async () => {
    child.kill('SIGKILL');
    await exited;
  };
  return { ...said, pid: child.pid, startMs: performance.now() - beganMs, stop };
}

/** The server as users run it. */
export async function startServer(dataFolder, settings = {}) {
  return await start([main], {
    PATH: process.env.PATH,
    RELORA_DATA_FOLDER: dataFolder,
    RELORA_GRPC_ADDRESS: '127.0.0.1:0',
    RELORA_HTTP_ADDRESS: '127.0.0.1:0',
    RELORA_FREE_DISK_BYTES_MIN: '0',
    ...settings,
  });
}

/** grpc-js with nothing behind it. */
export async function startBare() {
  return await start([bare], { PATH: process.env.PATH });
}

/** Runs `work` with a temporary folder, which is deleted afterwards. */
export async function withFolder(work) {
  const folder = mkdtempSync(join(tmpdir(), 'relora-bench-service-'));
  try {
    return await work(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

export function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}
