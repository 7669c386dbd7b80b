import type { Command } from 'commander';
import type { ReloraClient } from '@relora/sdk';
import { diskLines } from './diskCommands.js';
import { bytes, quantity, table } from './format.js';
import type { Run } from './session.js';

export function addInfoCommand(program: Command, run: Run): void {
  program
    .command('info')
    .description('show the server: version, devices, presets, recipes, limits and disk use')
    .action(() =>
      run(async ({ client, output, signal }) => {
        const info = await client.serverInfo({ signal });
        const disk = await client.diskUse({ entryCount: 5, signal });
        output.result({ ...info, disk }, () => infoLines(info, client.address, diskLines(disk)));
      }),
    );
}

type ServerInfo = Awaited<ReturnType<ReloraClient['serverInfo']>>;

function infoLines(info: ServerInfo, address: string, disk: string[]): string[] {
  return [
    `ReLoRA server ${info.version} at ${address}: ${info.runningJobCount} of ${info.slotCount} slots busy, ${info.queuedJobCount} jobs waiting`,
    ...disk,
    info.sandbox === ''
      ? 'Trainers are not confined by the kernel'
      : `Trainers are confined by the kernel: ${info.sandbox}`,
    '',
    ...table([
      ['DEVICE', 'MODEL', 'INSTRUCTIONS', 'THREADS', 'JOBS', 'MEMORY', 'FLOAT32', 'BFLOAT16'],
      ...info.devices.map((device) => [
        `${device.backend}${device.isDefault ? ' (default)' : ''}`,
        [device.model, device.computeCapability, device.uuid].filter(Boolean).join(' '),
        device.instructionSet,
        String(device.threadCount),
        String(device.slotCount),
        device.memoryBytes === 0 ? '' : bytes(device.memoryBytes),
        speed(device.float32Flops),
        speed(device.bfloat16Flops),
      ]),
    ]),
    '',
    ...table([['RECIPE', 'FOR'], ...info.recipes.map(({ name, summary }) => [name, summary])]),
    '',
    ...table([
      ['PRESET', 'HIDDEN', 'MLP', 'LAYERS', 'HEADS', 'BODY PARAMETERS'],
      ...info.presets.map(({ name, config, bodyParameterCount }) => [
        name,
        ...[
          config?.hiddenSize,
          config?.intermediateSize,
          config?.numHiddenLayers,
          config?.numAttentionHeads,
        ].map((value) => String(value ?? '')),
        quantity(bodyParameterCount),
      ]),
    ]),
  ];
}

/** Empty if the server has not measured it. */
function speed(flops: number): string {
  return flops === 0 ? '' : `${quantity(flops)}FLOP/s`;
}
