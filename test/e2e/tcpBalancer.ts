import { connect, createServer, type Socket } from 'node:net';
import { onTestFinished } from 'vitest';

/** A round-robin balancer of connections that skips unreachable addresses; closed after the test. */
export async function tcpBalancer(addresses: readonly string[]): Promise<string> {
  let turn = 0;
  const sockets = new Set<Socket>();
  const keep = (socket: Socket): Socket => {
    sockets.add(socket);
    return socket.on('error', () => socket.destroy()).on('close', () => sockets.delete(socket));
  };
  const reach = (client: Socket, triesLeft: number): void => {
    const [host, port] = addresses[turn++ % addresses.length]!.split(':');
    const upstream = keep(connect(Number(port), host));
    const missed = (): void => {
      if (triesLeft > 1 && !client.destroyed) reach(client, triesLeft - 1);
      else client.destroy();
    };
    upstream.once('error', missed).once('connect', () => {
      upstream.off('error', missed);
      for (const [one, other] of [
        [client, upstream],
        [upstream, client],
      ] as const)
        one.on('close', () => other.destroy());
      client.pipe(upstream).pipe(client);
    });
  };
  const server = createServer((client) => reach(keep(client), addresses.length));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  onTestFinished(async () => {
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
  });
  return `127.0.0.1:${(server.address() as { port: number }).port}`;
}
