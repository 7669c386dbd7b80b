// One rank that adds values over cards, in its own process: its order is the first argument, as JSON; file descriptor 3 is the memory shared
// by the ranks. Its last line has the sums, and by what they were made.
import { createRequire } from 'node:module';
import { connectDevices, ExchangeCollective, SharedMemory } from '@relora/engine';
import { openCuda } from '@relora/engine/cuda';

const { rank, size, options, lengths, diesAt } = JSON.parse(process.argv[2]);
const device = openCuda({ ...options, precision: 'float32' });
const exchange = new SharedMemory(3, rank, size);
const result = { sums: [] };
try {
  const direct = await connectDevices(device, exchange);
  result.library = direct?.library ?? null;
  const collective = new ExchangeCollective(device, exchange, direct);
  for (const [index, length] of lengths.entries()) {
    if (rank === size - 1 && index === diesAt) process.kill(process.pid, 'SIGKILL');
    const buffer = device.alloc(length);
    device.upload(
      buffer,
      Float32Array.from({ length }, (_, i) => Math.sin(i + 7 * rank + index) * 10 ** rank),
    );
    await collective.sum([buffer], 'float32');
    result.sums.push(Buffer.from((await device.download(buffer)).buffer).toString('base64'));
    device.release(buffer);
  }
  result.libraries = device.description.libraries;
  collective.leave(true);
} catch (error) {
  result.problem = { reason: error.reason, message: error.message };
}
exchange.leave();
device.close();
result.faults = createRequire(import.meta.url)(options.libraries.driver).takeFaults();
console.log(JSON.stringify(result));
