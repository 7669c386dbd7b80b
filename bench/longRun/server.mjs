import { spawn } from 'node:child_process';
import { mkdirSync, openSync, readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { createInterface } from 'node:readline';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { ReloraClient } from '@relora/sdk';

const main = fileURLToPath(new URL('../../server/dist/main.js', import.meta.url));

/** A server in its own process that keeps its address when it is killed and started again. */
export class LongServer {
  #child;
  #exited;
  kills = { trainer: 0, server: 0 };

  constructor(folder, port) {
    this.folder = folder;
    this.address = `127.0.0.1:${port}`;
  }

  static async start(folder) {
    mkdirSync(folder, { recursive: true });
    const server = new LongServer(folder, await freePort());
    await server.begin();
    return server;
  }

  client() {
    return new ReloraClient({ address: this.address, deadlineMs: 600_000 });
  }

  async begin() {
    const child = spawn(process.execPath, [main], {
      env: {
        PATH: process.env.PATH,
        RELORA_DATA_FOLDER: join(this.folder, 'data'),
        RELORA_GRPC_ADDRESS: this.address,
        RELORA_HTTP_ADDRESS: '127.0.0.1:0',
        RELORA_THREADS: '1',
        RELORA_FREE_DISK_BYTES_MIN: '0',
        // With checkpoints every five minutes and kills every three, several consecutive attempts may end without one.
        RELORA_ATTEMPTS_WITHOUT_PROGRESS_MAX: '20',
        // A halted trainer is silent on purpose.
        RELORA_TRAINER_SILENCE_SECONDS: '3600',
        // So that most of an hour is folded.
        RELORA_JOB_EVENTS_MAX: '1000',
      },
      stdio: ['ignore', 'pipe', openSync(join(this.folder, 'server.log'), 'a')],
    });
    this.#child = child;
    // However the bench ends, the server is killed with it.
    const kill = () => child.kill('SIGKILL');
    process.once('exit', kill);
    child.once('exit', () => process.off('exit', kill));
    this.#exited = new Promise((resolve) => child.once('exit', resolve));
    await new Promise((resolve, reject) => {
      createInterface({ input: child.stdout }).on('line', (line) => {
        if (JSON.parse(line).grpcAddress !== undefined) resolve();
      });
      void this.#exited.then((code) => reject(new Error(`The server ended with ${code}: ${this.folder}`)));
    });
  }

  /** Process ids of the server's children: the trainer, and possibly others. */
  children() {
    try {
      const { pid } = this.#child;
      return readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean).map(Number);
    } catch {
      return []; // it has ended
    }
  }

  signalChildren(signal) {
    for (const pid of this.children()) {
      try {
        process.kill(pid, signal);
      } catch {
        // It has ended meanwhile.
      }
    }
  }

  /** Kills the children, and with `all` the server too, which is started again at once. */
  async kill(all) {
    const children = this.children();
    if (children.length > 0) this.kills.trainer++;
    if (!all) return this.signalChildren('SIGKILL');
    this.kills.server++;
    this.#child.kill('SIGKILL');
    await this.#exited;
    // A halted trainer does not notice that its server is gone, and would keep its card or file locked.
    for (const pid of children) {
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // It noticed and exited.
      }
    }
    await sleep(100);
    await this.begin();
  }

  async stop() {
    this.#child.kill('SIGTERM');
    await this.#exited;
  }
}

async function freePort() {
  const probe = createServer();
  await new Promise((resolve) => probe.listen(0, '127.0.0.1', resolve));
  const { port } = probe.address();
  await new Promise((resolve) => probe.close(resolve));
  return port;
}
