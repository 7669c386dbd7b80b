// Trains a small Llama with ReLoRA on two centuries of public-domain English, live in the terminal, fetches the merged weights and
// generates text with them. Uses a real server and the public SDK.
import { rmSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { LiveView } from '@relora/cli';
import { ReloraClient, DatasetState } from '@relora/sdk';
import { compressorBitsPerByte, prepareCorpus } from './corpus.mjs';
import { demoJob, vocabularySize } from './job.mjs';
import { startLocalServer } from './localServer.mjs';
import { reportLines } from './report.mjs';

const root = fileURLToPath(new URL('../..', import.meta.url));
const workFolder = join(root, '.relora', 'demo');
const outputFolder = join(root, 'demo-output');
const datasetId = `addresses-bpe-${vocabularySize}`;

const interrupt = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => interrupt.abort());
const { signal } = interrupt;

let server;
let client;
try {
  say('Text: the State of the Union addresses since 1790.');
  const corpus = prepareCorpus(join(workFolder, 'corpus'));
  signal.throwIfAborted();
  server = await startLocalServer(join(workFolder, 'server'), join(workFolder, 'server.log'));
  client = new ReloraClient({ address: server.address });
  say(`Server: gRPC at ${server.address}, metrics at http://${server.httpAddress}/metrics`);

  const dataset = await dataSet(corpus);
  say(
    `Data: ${dataset.train.tokenCount} tokens to train on, ${dataset.heldOut.tokenCount} held out (${corpus.heldOutCount} of ${corpus.addressCount} addresses).\n`,
  );

  const job = await client.createJob(demoJob(dataset.name), {
    displayName: 'A small Llama learns English',
    signal,
  });
  const progress = await watch(job);

  rmSync(outputFolder, { recursive: true, force: true });
  const paths = await client.downloadArtifact(job.name, outputFolder, { signal });
  say(
    `\nWeights: merged and verified in demo-output/ (${paths.length} files, loadable by Hugging Face transformers).\n`,
  );
  await writeText(job.name, 'The American people');
  say(`\n${reportLines(progress, compressorBitsPerByte(corpus.heldOutText)).join('\n')}`);
} catch (error) {
  if (!signal.aborted) throw error;
  say('\nInterrupted: nothing is left behind.');
  process.exitCode = 130;
} finally {
  client?.close();
  await server?.stop();
  removeParts();
}

/** Created once; later runs reuse it. */
async function dataSet(corpus) {
  const known = await client.getDataset(`datasets/${datasetId}`, { signal }).catch((error) => {
    if (error.code === 'NOT_FOUND') return undefined;
    throw error;
  });
  if (known?.state === DatasetState.READY) return known;
  say(`Tokenizer: a BPE vocabulary of ${vocabularySize} is trained on the text …`);
  return await client.uploadDataset({
    datasetId,
    displayName: 'State of the Union addresses',
    files: [
      { path: corpus.train, split: 'DATASET_SPLIT_TRAIN' },
      { path: corpus.heldOut, split: 'DATASET_SPLIT_HELD_OUT' },
    ],
    spec: { tokenizer: { trainedBpe: { vocabularySize } } },
    signal,
  });
}

async function watch(job) {
  const view = new LiveView(process.stdout, {
    title: 'A small Llama learns English by ReLoRA',
    stepCount: job.progress.stepCount,
  });
  try {
    await client.waitForJob(job.name, {
      signal,
      onEvent: (event) => view.update(event),
    });
  } catch (error) {
    // The demo's server ends with the demo; the job would resume at the server's next start, which nobody asked for.
    if (signal.aborted) await client.cancelJob(job.name).catch(() => undefined);
    throw error;
  } finally {
    view.close();
  }
  return view.progress;
}

async function writeText(model, prompt) {
  process.stdout.write(`${prompt}`);
  for await (const { text } of client.generate(model, {
    prompt,
    tokenCountMax: 96,
    temperature: 0.7,
    seed: 3,
    signal,
  }))
    process.stdout.write(text);
  process.stdout.write('\n');
}

/** An interrupted download would resume when a client runs again; the demo starts over instead. */
function removeParts() {
  let names = [];
  try {
    names = readdirSync(outputFolder);
  } catch {
    return; // nothing was downloaded
  }
  for (const name of names) if (name.endsWith('.part')) rmSync(join(outputFolder, name), { force: true });
}

function say(text) {
  console.log(text);
}
