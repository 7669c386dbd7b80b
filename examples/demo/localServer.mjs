import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { closeSync, createReadStream, mkdirSync, openSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const entry = fileURLToPath(new URL('../../server/dist/main.js', import.meta.url));

/**
 * Starts a server on free ports of this machine, as a separate process.
 * `settings`: settings of the server, by their variables.
 * @returns its gRPC address, and a function that stops it; running jobs save a checkpoint
 */
export async function startLocalServer(dataFolder, logPath, settings = {}) {
  mkdirSync(dataFolder, { recursive: true });
  const log = openSync(logPath, 'w');
  const child = spawn(process.execPath, [entry], {
    // In a process group of its own: Ctrl-C reaches only the demo, which then stops the server properly.
    detached: true,
    stdio: ['ignore', 'pipe', log],
    env: {
      ...withoutSettings(process.env),
      RELORA_GRPC_ADDRESS: '127.0.0.1:0',
      RELORA_HTTP_ADDRESS: '127.0.0.1:0',
      RELORA_DATA_FOLDER: dataFolder,
      ...settings,
    },
  });
  const exited = new Promise((resolve) => child.once('exit', resolve));
  // However the demo ends, the server is killed with it.
  const kill = () => child.kill('SIGKILL');
  process.once('exit', kill);

  const started = new Promise((resolve, reject) => {
    createInterface({ input: child.stdout }).on('line', (line) => {
      const entry = parse(line);
      if (entry?.grpcAddress) resolve({ address: entry.grpcAddress, httpAddress: entry.httpAddress });
    });
    child.once('exit', async (code) =>
      reject(new Error(`The server ended with ${code}: ${await lastLines(logPath)}`)),
    );
  });
  const addresses = await started;
  closeSync(log);
  return {
    ...addresses,
    pid: child.pid,
    async stop() {
      child.kill('SIGTERM');
      await exited;
      process.off('exit', kill);
    },
  };
}

/** Settings of the user's own server must not affect the demo's. */
function withoutSettings(environment) {
  return Object.fromEntries(Object.entries(environment).filter(([name]) => !name.startsWith('RELORA_')));
}

function parse(line) {
  try {
    return JSON.parse(line);
  } catch {
    return undefined;
  }
}

async function lastLines(path) {
  let text = '';
  for await (const chunk of createReadStream(path, 'utf8')) text += chunk;
  return text.trim().split('\n').slice(-5).join('\n');
}
