import { pino, type Logger } from 'pino';
import type { Config } from './config.js';

/** One JSON line an event on standard output; readable lines on a terminal. */
export function createLog(config: Pick<Config, 'logLevel'>): Logger {
  const pretty = process.stdout.isTTY === true;
  if (pretty)
    return pino({
      level: config.logLevel,
      transport: { target: 'pino-pretty', options: { ignore: 'pid,hostname' } },
    });
  // Lines for a reader that has ended are lost, and the server runs on and can be stopped: a destination of pino's own would try for
  // ever to bring its last lines to it, and an error of a stream that nobody hears ends the process.
  for (const stream of [process.stdout, process.stderr])
    if (!stream.listeners('error').includes(ignored)) stream.on('error', ignored);
  return pino({ level: config.logLevel }, process.stdout);
}

function ignored(): void {}
