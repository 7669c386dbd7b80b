import { settings, type Config } from '../config.js';
import { jobShareBytes } from '../machineMemory.js';

/** Estimates of a job's memory are right to about a tenth; what is this far above them has gone wrong. */
const tolerance = 1.25;

/** What a process may take that reads files of clients. */
export function preparerMemory({ preparerMemoryBytesMax }: Pick<Config, 'preparerMemoryBytesMax'>) {
  return { bytesMax: preparerMemoryBytesMax, name: settings.preparerMemoryBytesMax.variable };
}

/** What a trainer may take, and a process that exports or runs a model: what jobs are admitted up to, with some tolerance. */
export function trainerMemory({ jobMemoryBytesMax, slots }: Pick<Config, 'jobMemoryBytesMax' | 'slots'>) {
  const limit = jobMemoryBytesMax || jobShareBytes(slots);
  return { bytesMax: tolerance * limit, name: settings.jobMemoryBytesMax.variable };
}
