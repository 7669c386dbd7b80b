import { createServer } from 'node:net';

/** Gives the card up. */
export type Unlock = () => void;

/**
 * Takes a card for this process, so that two servers on one machine do not train on it at once; null where another process has it. The
 * lock is a name of a socket in no file system, which the kernel gives up with the process, however that ends. Servers in containers with
 * networks of their own do not see each other: give each its own card.
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
