import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { pino } from 'pino';
import { describe, expect, it, onTestFinished } from 'vitest';
import { openToAll } from '../../server/dist/access/principal.js';
import { readReadiness } from '../../server/dist/readiness.js';
import { HttpServer, type HttpLimits, type WebParts } from '../../server/dist/web/httpServer.js';
import { openParts } from './parts.js';

const limits = { httpConnectionsMax: 100, spareConnectionsMax: 4, headerSeconds: 5 };

async function serve(parts: Partial<WebParts> = {}, changed: Partial<HttpLimits> = {}): Promise<string> {
  const server = await HttpServer.listen(
    { host: '127.0.0.1', port: 0 },
    {
      authenticate: openToAll,
      withoutToken: ['health'],
      render: async () => 'relora_slots 1\n',
      contentType: 'text/plain; version=0.0.4; charset=utf-8',
      readiness: async () => ({ ready: true }),
      log: pino({ level: 'silent' }),
      ...parts,
    },
    { ...limits, ...changed },
  );
  onTestFinished(async () => await server.close());
  return `http://127.0.0.1:${server.port}`;
}

const never = new AbortController().signal;

describe('the HTTP port', () => {
  it('serves metrics in the text format of Prometheus', async () => {
    const answer = await fetch(`${await serve()}/metrics`);
    expect(answer.status).toBe(200);
    expect(answer.headers.get('content-type')).toBe('text/plain; version=0.0.4; charset=utf-8');
    expect(await answer.text()).toBe('relora_slots 1\n');
  });

  it('answers a query string and HEAD as well, without a body for HEAD', async () => {
    const url = await serve();
    expect((await fetch(`${url}/metrics?x=1`)).status).toBe(200);
    const head = await fetch(`${url}/healthz`, { method: 'HEAD' });
    expect([head.status, await head.text()]).toEqual([200, '']);
  });

  it('refuses other methods and serves nothing else', async () => {
    const url = await serve();
    for (const method of ['POST', 'PUT', 'DELETE']) {
      const answer = await fetch(`${url}/metrics`, { method });
      expect([answer.status, answer.headers.get('allow')]).toEqual([405, 'GET, HEAD']);
    }
    for (const path of [
      '/',
      '/metrics/',
      '/../etc/passwd',
      '/%2e%2e/store.db',
      '//metrics',
      '/favicon.ico',
    ]) {
      expect((await fetch(url + path)).status, path).toBe(404);
    }
  });

  it('stays alive and gives no details when a scrape fails', async () => {
    const url = await serve({
      render: async () => {
        throw new Error('/secret/path is gone');
      },
    });
    const answer = await fetch(`${url}/metrics`);
    expect([answer.status, await answer.text()]).toEqual([500, 'Internal error\n']);
    expect((await fetch(`${url}/healthz`)).status).toBe(200);
  });

  /** Connections that send `text` and wait; their answers are read only on request. */
  const openMany = async (url: string, count: number, text: string): Promise<Socket[]> => {
    const { hostname, port } = new URL(url);
    return await Promise.all(
      Array.from({ length: count }, async () => {
        const socket = connect(Number(port), hostname);
        onTestFinished(() => void socket.destroy());
        socket.on('error', () => {});
        await once(socket, 'connect');
        socket.write(text);
        return socket;
      }),
    );
  };

  it('answers about health at once beside a hundred half requests', async () => {
    const url = await serve({}, { headerSeconds: 3600 });
    const slow = await openMany(url, 150, 'GET /healthz HTTP/1.1\r\nhost: a\r\nx-slow: ');
    expect((await fetch(`${url}/healthz`)).status).toBe(200);
    // The newest ones were still open: they got no answer because of the time limit.
    expect(slow.at(-1)!.destroyed).toBe(false);
  });

  it('has room for health alone beside requests that are all being answered', async () => {
    let scrapes = 0;
    let answerAll = (): void => {};
    const answered = new Promise<string>((resolve) => (answerAll = () => resolve('')));
    const url = await serve({ render: async () => (scrapes++, await answered) }, { httpConnectionsMax: 3 });
    await openMany(url, 3, 'GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n');
    while (scrapes < 3) await new Promise((resolve) => setTimeout(resolve, 5));
    expect((await fetch(`${url}/metrics`)).status).toBe(503);
    expect((await fetch(`${url}/healthz`)).status).toBe(200);
    expect((await fetch(`${url}/readyz`)).status).toBe(200);
    answerAll();
  });

  it('cuts a request that does not come to the end of its headers', async () => {
    const url = await serve({}, { headerSeconds: 0.3 });
    const [socket] = await openMany(url, 1, 'GET /healthz HTTP/1.1\r\nx-slow: ');
    socket!.resume();
    await once(socket!, 'close');
  });

  it('cannot be had twice on one port', async () => {
    const port = Number(new URL(await serve()).port);
    const second = HttpServer.listen(
      { host: '127.0.0.1', port },
      {
        log: pino({ level: 'silent' }),
      } as WebParts,
      limits,
    );
    await expect(second).rejects.toThrow('EADDRINUSE');
  });
});

describe('readiness', () => {
  const answerFor = async (settings: Record<string, string>, stopping: AbortSignal = never) => {
    const { db, config } = await openParts(settings);
    const url = await serve({ readiness: async () => await readReadiness(db, config, stopping) });
    const answer = await fetch(`${url}/readyz`);
    return {
      status: answer.status,
      text: await answer.text(),
      alive: (await fetch(`${url}/healthz`)).status,
    };
  };

  it('is given while jobs can be taken', async () => {
    expect(await answerFor({})).toEqual({ status: 200, text: 'ready\n', alive: 200 });
  });

  it('is withdrawn when the server begins to stop; it is still alive', async () => {
    expect(await answerFor({}, AbortSignal.abort())).toEqual({
      status: 503,
      text: 'The server is stopping\n',
      alive: 200,
    });
  });

  it('is withdrawn below the floor of free space, with the figures', async () => {
    const { status, text, alive } = await answerFor({ RELORA_FREE_DISK_BYTES_MIN: String(2 ** 50) });
    expect([status, alive]).toEqual([503, 200]);
    expect(text).toMatch(/^The disk is almost full: \d+ bytes are free, 1125899906842624 are needed$/m);
  });

  it('is withdrawn when the store is gone', async () => {
    const parts = await openParts();
    const url = await serve({ readiness: async () => await readReadiness(parts.db, parts.config, never) });
    await parts.close();
    const answer = await fetch(`${url}/readyz`);
    expect(answer.status).toBe(503);
    expect(await answer.text()).toMatch(/^The store cannot be written/);
  });
});
