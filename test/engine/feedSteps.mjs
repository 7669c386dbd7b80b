// The data of a run without its arithmetic: a line for each step with the digest of its batch.
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { join } from 'node:path';
import { Dataset, TrainingData } from '@relora/engine/data';

const { spec, folders, runFolder, first, stepCount } = JSON.parse(process.argv[2]);
const sources = await Promise.all(folders.map((folder) => Dataset.open(folder, { verify: false })));
const feed = new TrainingData(spec, sources).feed(join(runFolder, 'checked-shards.json'));
const { sequenceCount } = spec.batch;
for (let step = first; step < stepCount; step++) {
  const { inputs, targets } = await feed.read(step * sequenceCount, sequenceCount);
  feed.prepare((step + 1) * sequenceCount, sequenceCount);
  const digest = createHash('sha256').update(inputs).update(targets).digest('hex');
  if (!process.stdout.write(`${step} ${digest}\n`)) await once(process.stdout, 'drain');
}
feed.close();
