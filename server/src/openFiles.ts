import { readFileSync } from 'node:fs';
import { ConfigInvalid, settings, type Config } from './config.js';

/** Files of a child process: its pipes and its channel, with some to spare. */
const filesOfChild = 8;
/** Files of everything else: the store, listeners, the log, libraries, and files that are open for a moment. */
const filesReserved = 128;
/** A server with fewer connections is of no use. */
const connectionsMin = 16;

/**
 * How many connections the gRPC port may have, so that the files of the store, children, uploads and downloads can always be opened. Throws
 * ConfigInvalid if the limit of open files leaves too few.
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

/** The limit of open files; null if the system does not say. Node has already raised it as far as it may. */
function readOpenFilesMax(): number | null {
  try {
    const found = /^Max open files\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'));
    return found === null ? null : Number(found[1]);
  } catch {
    return null;
  }
}
