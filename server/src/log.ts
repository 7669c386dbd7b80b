import { pino, type Logger } from 'pino';
import type { Config } from './config.js';

/** One JSON line an event on standard output; readable lines on a terminal. */
export function createLog(config: Pick<Config, 'logLevel'>): Logger {
  const pretty = process.stdout.isTTY === true;
  return pino({
    level: config.logLevel,
    ...(pretty ? { transport: { target: 'pino-pretty', options: { ignore: 'pid,hostname' } } } : {}),
  });
}
