import { request } from 'node:http';
import { withAdminSocket } from './adminSocket.js';

/** The server refused; with its message. */
export class AdminRefused extends Error {
  override name = 'AdminRefused';
}

/** Asks the server that runs on a data folder; undefined if none runs. Throws AdminRefused. */
export async function askServer<Result>(
  dataFolder: string,
  command: string,
  input: unknown,
): Promise<{ result: Result } | undefined> {
  try {
    return await withAdminSocket(dataFolder, async (socketPath) => {
      const { status, text } = await post(socketPath, command, JSON.stringify(input));
      const body = JSON.parse(text) as Result & { message?: string };
      if (status !== 200) throw new AdminRefused(body.message);
      return { result: body };
    });
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException;
    if (['ENOENT', 'ECONNREFUSED', 'ENOTDIR'].includes(code)) return undefined;
    throw error;
  }
}

async function post(
  socketPath: string,
  command: string,
  body: string,
): Promise<{ status: number; text: string }> {
  return await new Promise((resolve, reject) => {
    const call = request({ socketPath, path: `/${command}`, method: 'POST' }, (response) => {
      let text = '';
      response.on('data', (chunk: Buffer) => (text += chunk.toString()));
      response.on('end', () => resolve({ status: response.statusCode ?? 0, text }));
      response.on('error', reject);
    });
    call.on('error', reject);
    call.end(body);
  });
}
