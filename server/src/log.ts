import { pino, type Logger } from 'pino';
import type { Config } from './config.js';

/** Writes one JSON line per event to standard output; on a terminal, readable lines. */
export function createLog(config: Pick<Config, 'logLevel'>): Logger {
  const pretty = process.stdout.isTTY === true;
  if (pretty)
    return pino({
      level: config.logLevel,
      transport: { target: 'pino-pretty', options: { ignore: 'pid,hostname' } },
    });
  // When the reader of the log has ended, its lines are lost, but the server keeps running and can be stopped. A destination of pino's own
  // would retry its last lines forever, and an error event of a stream without a listener ends the process.
  for (const stream of [process.stdout, process.stderr])
    if (!stream.listeners('error').includes(ignored)) stream.on('error', ignored);
  return pino({ level: config.logLevel }, process.stdout);
}

function ignored(): void {}
