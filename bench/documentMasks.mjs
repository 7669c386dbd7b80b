// Steps of packed documents with and without their mask: `node bench/documentMasks.mjs [PRESET] [TOKENS]`. Each round takes a step of
// either kind, so that other load on the machine affects both alike; processor seconds, since wall time includes other processes.
import { openDevice } from '@relora/engine';
import { presets } from '@relora/engine/plan';
import { GradientBuffer } from '../engine/dist/model/gradientBuffer.js';
import { Llama } from '../engine/dist/model/llama.js';

const [preset = 'llama-9m', tokens = '100'] = process.argv.slice(2);
const [time, vocabSize, rounds] = [2048, 4096, 15];
const length = Number(tokens);
for (const precision of ['float32', 'bfloat16']) {
  const device = await openDevice({ device: 'native', precision, threads: 1 });
  const model = Llama.create(device, { ...presets[preset], vocabSize, maxPositionEmbeddings: time }, 1);
  const inputs = Int32Array.from({ length: time }, (_, i) => (i * 7919) % vocabSize);
  const targets = Int32Array.from({ length: time }, (_, i) => (i * 104729 + 1) % vocabSize);
  const masked = Int32Array.from({ length: time }, (_, i) => i - (i % length));
  const gradients = new GradientBuffer(device, model.trainable());
  const result = device.newResult(0);
  const seconds = { plain: [], masked: [] };
  for (let round = 0; round <= rounds; round++) {
    for (const [kind, documents] of Object.entries({ plain: null, masked })) {
      const before = process.cpuUsage();
      model.differentiate({ inputs, targets, batch: 1, time, documents }, gradients, result);
      const { user } = process.cpuUsage(before);
      if (round > 0) seconds[kind].push(user / 1e6); // the first round allocates memory
    }
  }
  const median = (values) => values.sort((a, b) => a - b)[values.length >> 1];
  const [plain, own] = [median(seconds.plain), median(seconds.masked)];
  console.log(
    `${preset}, ${precision}, ${time} tokens in documents of ${length}: plain ${plain.toFixed(3)} s, masked ${own.toFixed(3)} s, ${(own / plain).toFixed(2)}`,
  );
  device.releaseResult(result);
  gradients.dispose();
  model.dispose();
  device.close();
}
