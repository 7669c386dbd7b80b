import { stat } from 'node:fs/promises';
import type { Command } from 'commander';
import type { Weights } from '@relora/sdk';
import { bytes, quantity, table } from './format.js';
import { label, type Run } from './session.js';

const columns = ['NAME', 'STATE', 'WEIGHTS', 'LAYERS', 'HIDDEN', 'SIZE', 'TITLE'];

/** Commands for models that jobs can begin at. */
export function addWeightsCommands(program: Command, run: Run): void {
  const weights = program
    .command('weights')
    .description('manage base weights: models in Hugging Face layout at which jobs can begin');

  weights
    .command('upload <paths...>')
    .description('upload a folder with config.json, safetensors and tokenizer.json, or these files')
    .option(
      '--id <id>',
      'id of the weights; an interrupted upload resumes if it is repeated with the same id',
    )
    .option('--title <text>', 'title, shown instead of the id')
    .option('--label <key=value...>', 'labels to find the weights by', label)
    .action((paths: string[], flags: { id?: string; title?: string; label?: Record<string, string> }) =>
      run(async ({ client, output, signal }) => {
        const [first] = paths;
        const isFolder = paths.length === 1 && (await stat(first!)).isDirectory();
        const uploaded = await client.uploadWeights({
          from: isFolder ? first! : paths,
          weightsId: flags.id,
          displayName: flags.title,
          labels: flags.label,
          signal,
        });
        output.result(uploaded, () => [
          `${uploaded.name} are ready: ${quantity(uploaded.parameterCount)} weights, ${bytes(uploaded.sizeBytes)}.`,
          ...uploaded.warnings.map(({ reason, message }) => `${reason}: ${message}`),
        ]);
      }),
    );

  weights
    .command('list')
    .description('list uploaded weights, newest first')
    .option('--label <key=value...>', 'only weights with these labels', label)
    .option('--owner <name>', 'only those that this caller uploaded')
    .action((flags: { label?: Record<string, string>; owner?: string }) =>
      run(async ({ client, output, signal }) => {
        const weights: Weights[] = [];
        for await (const found of client.listWeights({ labels: flags.label, owner: flags.owner, signal }))
          weights.push(found);
        output.result({ weights }, () =>
          weights.length === 0 ? ['No weights.'] : table([columns, ...weights.map(rowOf)]),
        );
      }),
    );

  weights
    .command('get <weights>')
    .description('show details and files of weights')
    .action((name: string) =>
      run(async ({ client, output, signal }) => {
        const found = await client.getWeights(weightsName(name), { signal });
        output.result(found, () => [
          ...table([columns, rowOf(found)]),
          '',
          ...table([
            ['FILE', 'SIZE', 'RECEIVED'],
            ...found.files.map((file) => [file.fileName, bytes(file.sizeBytes), bytes(file.receivedBytes)]),
          ]),
        ]);
      }),
    );

  weights
    .command('delete <weights>')
    .description('delete weights at which no unfinished job begins')
    .action((name: string) =>
      run(async ({ client, output, signal }) => {
        await client.deleteWeights(weightsName(name), { signal });
        output.result({ name: weightsName(name) }, () => [`${weightsName(name)} are deleted.`]);
      }),
    );
}

function weightsName(name: string): string {
  return name.startsWith('weights/') ? name : `weights/${name}`;
}

function rowOf(found: Weights): string[] {
  const { config } = found;
  return [
    found.name,
    found.state.replace('WEIGHTS_STATE_', ''),
    quantity(found.parameterCount),
    String(config?.numHiddenLayers ?? ''),
    String(config?.hiddenSize ?? ''),
    bytes(found.sizeBytes),
    found.displayName,
  ];
}
