// The data of a run without its arithmetic: prints a line per step with the digest of its batch, for all steps or for the given ones.
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { join } from 'node:path';
import { Dataset, TrainingData } from '@relora/engine/data';

const { spec, folders, runFolder, first = 0, stepCount, steps } = JSON.parse(process.argv[2]);
const sources = await Promise.all(folders.map((folder) => Dataset.open(folder, { verify: false })));
const feed = new TrainingData(spec, sources).feed(join(runFolder, 'checked-shards.json'));
const { sequenceCount } = spec.batch;
const stepAt = (place) => (steps === undefined ? place : steps[place]);
for (let place = first; place < (steps?.length ?? stepCount); place++) {
  const step = stepAt(place);
  const { inputs, targets } = await feed.read(step * sequenceCount, sequenceCount);
  feed.prepare((stepAt(place + 1) ?? step + 1) * sequenceCount, sequenceCount);
  const digest = createHash('sha256').update(inputs).update(targets).digest('hex');
  if (!process.stdout.write(`${step} ${digest}\n`)) await once(process.stdout, 'drain');
}
feed.close();
