import { createServer } from 'node:net';

/** Releases the card. */
export type Unlock = () => void;

/**
 * Locks a card for this process, so that two servers on one machine do not train on it at the same time; null if another process has it.
 * The lock is an abstract socket name, which the kernel releases when the process ends, however that happens. Servers in containers with
 * separate networks do not see each other's locks: give each its own card.
 */
export async function lockCard(uuid: string): Promise<Unlock | null> {
  const socket = createServer((connection) => connection.destroy());
  return await new Promise((resolve, reject) => {
    socket.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EADDRINUSE') resolve(null);
      else reject(error);
    });
    socket.listen(`\0relora-card-${uuid}`, () => {
      socket.unref();
      resolve(() => socket.close());
    });
  });
}
