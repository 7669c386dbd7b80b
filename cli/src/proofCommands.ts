import { readFile, writeFile } from 'node:fs/promises';
import type { Command } from 'commander';
import {
  bundleToJson,
  compareServer,
  createBundle,
  parseBundle,
  replayBundle,
  type Bundle,
  type Restart,
} from '@relora/sdk';
import { ReplayDiffers, UsageError } from './exitCodes.js';
import { jobName, type Run, type Session } from './session.js';
import { factLines, replayText, restartTable } from './proofText.js';

/** Commands about what a run proves: its restarts, and that it can be reproduced bit for bit. */
export function addProofCommands(program: Command, run: Run): void {
  program
    .command('restarts <job>')
    .description('show what was measured at each restart')
    .action((job: string) =>
      run(async ({ client, output, signal }) => {
        const restarts: Restart[] = [];
        for await (const restart of client.listRestarts(jobName(job), { signal })) restarts.push(restart);
        output.result({ restarts }, () => restartTable(restarts));
      }),
    );

  program
    .command('bundle <job>')
    .description(
      'write a bundle with which a job can be run again, here or on another server with the same data',
    )
    .requiredOption('-o, --output <file>', 'file to write')
    .action((job: string, flags: { output: string }) =>
      run(async ({ client, output, signal }) => {
        const bundle = await createBundle(client, jobName(job), { signal });
        await writeFile(flags.output, `${JSON.stringify(bundleToJson(bundle))}\n`);
        output.result({ path: flags.output }, () => [
          `${flags.output}: ${bundle.losses.length} steps, ${bundle.files.length} files by SHA-256.`,
        ]);
      }),
    );

  program
    .command('replay [job]')
    .description('run a job, or a bundle, again, and check whether the weights are identical')
    .option('--bundle <file>', 'a bundle from "relora bundle", instead of a job')
    .action((job: string | undefined, flags: { bundle?: string }) =>
      run(async (session) => await replay(session, await findBundle(session, job, flags.bundle))),
    );
}

/** Throws ReplayDiffers, after all output, if the result is not identical. */
async function replay({ client, output, signal }: Session, bundle: Bundle): Promise<void> {
  const server = await compareServer(client, bundle, { signal });
  if (server.length > 0) {
    output.note('This server differs from the one that ran the job, so the bits may differ:');
    for (const line of factLines(server)) output.note(line);
  }
  const report = await replayBundle(client, bundle, {
    signal,
    onCreated: ({ name }) => output.note(`${name} runs ${bundle.job} again …`),
  });
  output.result(report, () => replayText(report));
  if (!report.isIdentical) throw new ReplayDiffers(`${report.job} differs from ${bundle.job}`);
}

async function findBundle(
  { client, signal }: Session,
  job: string | undefined,
  path: string | undefined,
): Promise<Bundle> {
  if ((job === undefined) === (path === undefined))
    throw new UsageError('Give either a job or --bundle <file>');
  if (path === undefined) return await createBundle(client, jobName(job!), { signal });
  const content = await readFile(path, 'utf8');
  let json: unknown;
  try {
    json = JSON.parse(content);
  } catch (error) {
    throw new UsageError(`${path} is not JSON: ${(error as Error).message}`);
  }
  return parseBundle(json);
}
