import { readFileSync } from 'node:fs';
import { ConfigInvalid, settings, type Config } from './config.js';

/** Of a child process: its pipes and the channel, with some to spare. */
const filesOfChild = 8;
/** Of everything else: the store, listeners, the log, libraries, and what is opened for a moment. */
const filesReserved = 128;
/** With fewer a server is of no use. */
const connectionsMin = 16;

/**
 * How many connections the gRPC port may have, so that the files which the store, children, uploads and downloads need can always be
 * opened. Throws ConfigInvalid when the limit of open files leaves too few.
 */
export function connectionsWithin(
  config: Pick<
    Config,
    | 'connectionsMax'
    | 'httpConnectionsMax'
    | 'spareConnectionsMax'
    | 'downloadsMax'
    | 'uploadsMax'
    | 'slots'
    | 'tasksMax'
  >,
  openFilesMax: number | null = readOpenFilesMax(),
): number {
  if (openFilesMax === null) return config.connectionsMax;
  const others =
    config.httpConnectionsMax +
    2 * config.spareConnectionsMax +
    config.downloadsMax +
    config.uploadsMax +
    (config.slots + config.tasksMax) * filesOfChild +
    filesReserved;
  if (openFilesMax - others < Math.min(connectionsMin, config.connectionsMax)) {
    const lower = (['httpConnectionsMax', 'downloadsMax', 'uploadsMax'] as const).map(
      (name) => settings[name].variable,
    );
    throw new ConfigInvalid([
      `At most ${openFilesMax} files may be open; ${others + connectionsMin} are needed: raise the limit (ulimit -n), or lower ${lower.join(', ')}`,
    ]);
  }
  return Math.min(config.connectionsMax, openFilesMax - others);
}

/** The limit of open files; null where the system does not say. Node has raised it as far as it may by itself. */
function readOpenFilesMax(): number | null {
  try {
    const found = /^Max open files\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'));
    return found === null ? null : Number(found[1]);
  } catch {
    return null;
  }
}
