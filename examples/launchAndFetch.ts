// Uploads a text, trains a small model on it with ReLoRA, shows the progress and fetches the weights.
// Compile it in a project that has @relora/sdk, then: node launchAndFetch.js story.txt (a server starts with npx relora-server)
import { ReloraClient, ReloraError } from '@relora/sdk';

const [path = 'README.md'] = process.argv.slice(2);
const client = new ReloraClient(); // 127.0.0.1:50051, or RELORA_ADDRESS

try {
  const dataset = await client.uploadDataset({ files: [{ path, fileName: 'text.txt' }] });

  const job = await client.createJob({
    model: { preset: 'demo' },
    dataset: dataset.name,
    warmStart: { stepCount: 20 }, // full-rank, before the adapters
    adapter: { rank: 16, cycleStepCount: 20 }, // merged and replaced every 20 steps
    stepCount: 80,
    batch: { sequenceLength: 64, sequenceCount: 8 },
  });

  // Every event once and in order, even if the connection breaks in between.
  for await (const event of client.watch(job.name)) {
    if (event.kind === 'step') console.log(`step ${event.step.step}  loss ${event.step.loss.toFixed(3)}`);
    if (event.kind === 'restart') console.log(`merged, norm of change ${event.restart.deltaNorm.toFixed(3)}`);
  }
  await client.waitForJob(job.name); // throws JobFailedError with the reason if it did not succeed

  // Resumes an interrupted download; files get their names after their SHA-256 was verified.
  console.log(await client.downloadArtifact(job.name, 'weights'));

  for await (const { text } of client.generate(job.name, { prompt: 'The ', tokenCountMax: 40 })) {
    process.stdout.write(text);
  }
} catch (error) {
  if (!(error instanceof ReloraError)) throw error;
  console.error(`${error.code} ${error.reason}: ${error.message}`);
  for (const { field, description } of error.fields) console.error(`  ${field}: ${description}`);
  process.exitCode = 1;
} finally {
  client.close();
}
