import { settings, type Config } from '../config.js';
import { jobShareBytes } from '../machineMemory.js';

/** Estimates of a job's memory are right to about 10 %: a process this far above has a fault. */
const tolerance = 1.25;

/** Memory limit of a process that reads files of clients. */
export function preparerMemory({ preparerMemoryBytesMax }: Pick<Config, 'preparerMemoryBytesMax'>) {
  return { bytesMax: preparerMemoryBytesMax, name: settings.preparerMemoryBytesMax.variable };
}

/** Memory limit of a trainer, and of a process that exports or runs a model: the limit for admitting jobs, with some tolerance. */
export function trainerMemory({ jobMemoryBytesMax, slots }: Pick<Config, 'jobMemoryBytesMax' | 'slots'>) {
  const limit = jobMemoryBytesMax || jobShareBytes(slots);
  return { bytesMax: tolerance * limit, name: settings.jobMemoryBytesMax.variable };
}
