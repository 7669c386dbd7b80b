import { resolve } from 'node:path';
import { askServer } from './askServer.js';

/** Ends the process with 0 if the server of the data folder answers and 1 if not, however its ports are configured. */
export async function healthCommand(): Promise<never> {
  const timer = setTimeout(() => process.exit(1), answerMs);
  const answer = await askServer(resolve(process.env.RELORA_DATA_FOLDER || '.relora'), 'health', {}).catch(
    () => undefined,
  );
  clearTimeout(timer);
  process.exit(answer === undefined ? 1 : 0);
}

const answerMs = 3000;
