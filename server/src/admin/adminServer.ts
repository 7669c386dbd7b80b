import { chmodSync, rmSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server } from 'node:http';
import { join } from 'node:path';
import type { Logger } from 'pino';
import { withAdminSocket } from './adminSocket.js';

/** Handlers of the commands to a running server, by name: JSON in, JSON out. The message of an error becomes that of the command. */
export type AdminHandlers = Readonly<Record<string, (input: never) => Promise<unknown>>>;

const bodyBytesMax = 1 << 20;

/** Serves commands on the same machine over a socket in the data folder; no other server uses the folder. */
export class AdminServer {
  private constructor(
    private readonly server: Server,
    private readonly path: string,
  ) {}

  static async listen(dataFolder: string, handlers: AdminHandlers, log: Logger): Promise<AdminServer> {
    const server = createServer((request, response) => {
      void answer(request, handlers, log).then(({ status, body }) => {
        response.writeHead(status, { 'content-type': 'application/json' });
        response.end(JSON.stringify(body ?? null));
      });
    });
    const path = join(dataFolder, 'admin.sock');
    try {
      // Left by a server that was killed: as we have locked the store, no other server uses it.
      rmSync(path, { force: true });
      await withAdminSocket(dataFolder, async (reached) => {
        await new Promise<void>((resolve, reject) => {
          server.once('error', reject);
          server.listen(reached, () => {
            server.off('error', reject);
            resolve();
          });
        });
        chmodSync(reached, 0o600);
      });
    } catch (error) {
      // A full or unsuitable file system must not keep a server from its jobs.
      log.warn({ err: error, path }, 'Commands on this machine cannot reach the server: it has no socket');
    }
    return new AdminServer(server, path);
  }

  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.server.close(() => resolve()));
    this.server.closeAllConnections();
    await closed;
    rmSync(this.path, { force: true });
  }
}

async function answer(
  request: IncomingMessage,
  handlers: AdminHandlers,
  log: Logger,
): Promise<{ status: number; body: unknown }> {
  const name = (request.url ?? '').slice(1);
  const handle = Object.hasOwn(handlers, name) ? handlers[name] : undefined;
  if (handle === undefined || request.method !== 'POST')
    return { status: 404, body: { message: `This server knows no command ${name}` } };
  try {
    return { status: 200, body: await handle((await readJson(request)) as never) };
  } catch (error) {
    log.warn({ err: error, command: name }, 'A command on this machine failed');
    return { status: 400, body: { message: error instanceof Error ? error.message : String(error) } };
  }
}

async function readJson(request: IncomingMessage): Promise<unknown> {
  let text = '';
  for await (const chunk of request) {
    text += String(chunk);
    if (text.length > bodyBytesMax) throw new Error('The command is too long');
  }
  return JSON.parse(text);
}
