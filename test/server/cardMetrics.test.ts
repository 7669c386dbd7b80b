import { expect, it } from 'vitest';
import { libraryFolder, modelSettings } from '../cuda/modelServer.js';
import { startServerProcess } from '../e2e/serverProcess.js';
import { patienceMs } from '../patience.mjs';
import { temporaryFolder } from './parts.js';

const labels = 'uuid="GPU-72656c6f-7261-2d6d-6f64-656c2d303000",model="Model of a card"';
const all = ['libcuda.so.1', 'libnvrtc.so.13', 'libnvidia-ml.so.1'];

async function metricsOf(
  settings: Record<string, string>,
  isThere: (text: string) => boolean,
): Promise<string> {
  const server = await startServerProcess(temporaryFolder(), settings);
  const read = async () => await (await fetch(`http://${server.httpAddress}/metrics`)).text();
  await expect.poll(async () => isThere(await read()), { interval: 200, timeout: patienceMs }).toBe(true);
  return await read();
}

it(
  'a card has what it answers, and nothing of what it does not',
  async () => {
    const settings = {
      ...modelSettings(libraryFolder(all)),
      CUDA_MODEL_NVML: 'utilization=40,celsius=65,throttle=32,memory=1073741824',
    };
    const text = await metricsOf(settings, (found) => found.includes('relora_card_utilization_ratio{'));
    for (const line of [
      `relora_card_utilization_ratio{${labels}} 0.4`,
      `relora_card_temperature_celsius{${labels}} 65`,
      `relora_card_memory_used_bytes{${labels}} 1073741824`,
      `relora_card_memory_bytes{${labels}} ${2 ** 33}`,
      `relora_card_throttled{${labels},cause="thermal"} 1`,
      `relora_card_throttled{${labels},cause="power"} 0`,
    ])
      expect(text).toContain(line);
    expect(text).not.toContain('relora_card_power_watts{');
  },
  patienceMs,
);

it(
  'a card without the management library has none, and the server runs',
  async () => {
    const text = await metricsOf(modelSettings(), (found) => found.includes('relora_slots 2'));
    expect(text).not.toMatch(/relora_card_\w+\{/);
  },
  patienceMs,
);
