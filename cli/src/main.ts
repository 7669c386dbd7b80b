#!/usr/bin/env node
import { readFileSync } from 'node:fs';
import { Command, CommanderError, Option } from 'commander';
import { ReloraClient, type Logger } from '@relora/sdk';
import { addAuditCommand } from './auditCommand.js';
import { addUsageCommands } from './usageCommands.js';
import { addCompareCommand } from './compareCommand.js';
import { addCompletionCommand } from './completionCommand.js';
import { addCreateCommands } from './createCommands.js';
import { addDataCommands } from './dataCommands.js';
import { addEvaluateCommand } from './evaluateCommand.js';
import { addGenerateCommand } from './generateCommand.js';
import { addInfoCommand } from './infoCommand.js';
import { addDiskCommands } from './diskCommands.js';
import { addProofCommands } from './proofCommands.js';
import { addExportCommand } from './exportCommand.js';
import { addWeightsCommands } from './weightsCommands.js';
import { exitCodeOf, exitCodes, plainMessage } from './exitCodes.js';
import { addLoginCommands } from './loginCommands.js';
import { addJobCommands } from './jobCommands.js';
import { addInitCommand } from './initCommand.js';
import { nameFlags } from './nameFlags.js';
import { formats, Output, type Format } from './output.js';
import { chooseServer } from './profiles.js';
import { deadlineOf, type GlobalFlags, type Run, type RunAlone } from './session.js';
import { numberAboveZero } from './specOptions.js';
import { addSweepCommand } from './sweepCommand.js';
import { addWebhookCommands } from './webhookCommands.js';
import { addWatchCommand } from './watchCommand.js';

const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as {
  version: string;
};

// Read before parsing, which may be what fails.
const format = formatOf(process.argv);
const isJson = format !== 'table';
const output = new Output(format);

const program = new Command('relora')
  .description('Launch and watch ReLoRA training jobs, and download their weights.')
  .version(version)
  .option(
    '--address <host:port>',
    'address of the server; by default RELORA_ADDRESS, the profile of relora login, or 127.0.0.1:50051',
  )
  .option('--profile <name>', 'profile of relora login to use; by default RELORA_PROFILE, or the last one')
  .option(
    '--tenant <name>',
    'tenant for which an operator acts; by default RELORA_TENANT, or the tenant of the token',
  )
  .option(
    '--timeout <seconds>',
    'time limit of a call; while no server answers, the call is retried for this long; by default 60, but evaluate may take an hour and pause 5 minutes',
    numberAboveZero,
  )
  .option('--json', 'print one JSON object per line, also for errors; same as --print json')
  .addOption(
    new Option('--print <form>', 'form of the output: a table for people, json, or yaml documents')
      .choices(formats)
      .default('table'),
  )
  .addHelpText(
    'after',
    `
Exit codes: ${exitCodes.ok} done, ${exitCodes.jobFailed} job or data set failed or cancelled, ${exitCodes.usage} wrong usage,
${exitCodes.refused} refused by the server, ${exitCodes.unreachable} server not reached, ${exitCodes.internal} internal error,
${exitCodes.different} a replay gave another result, ${exitCodes.interrupted} interrupted.
Variables: RELORA_ADDRESS, RELORA_PROFILE and RELORA_TENANT for these options;
RELORA_TOKEN, RELORA_CA_FILE, RELORA_CERTIFICATE_FILE and RELORA_KEY_FILE if no
profile is used; NO_COLOR for a view without colors.`,
  )
  // The help of a command includes the global options, which may come after the command.
  .configureHelp({ showGlobalOptions: true })
  .exitOverride()
  .configureOutput(isJson ? { writeErr: () => {} } : {});

const run: Run = async (body) => {
  const interrupt = new AbortController();
  const onInterrupt = () => {
    if (interrupt.signal.aborted) process.exit(exitCodes.interrupted); // a second Ctrl-C does not wait
    interrupt.abort();
  };
  // Kept until the end: a second Ctrl-C may come while the process ends.
  process.on('SIGINT', onInterrupt);
  process.on('SIGTERM', onInterrupt);
  let client: ReloraClient | undefined;
  try {
    const flags = program.opts<GlobalFlags>();
    client = new ReloraClient({
      ...chooseServer(flags),
      ...deadlineOf(flags),
      logger: retryNotes(output),
    });
    output.address = client.address;
    await body({ client, output, signal: interrupt.signal });
  } catch (error) {
    if (!interrupt.signal.aborted) output.error(error);
    process.exitCode = interrupt.signal.aborted ? exitCodes.interrupted : exitCodeOf(error);
  } finally {
    client?.close();
  }
};

const runAlone: RunAlone = async (body) => {
  try {
    await body(output, program.opts<GlobalFlags>());
  } catch (error) {
    output.error(error);
    process.exitCode = exitCodeOf(error);
  }
};

function formatOf(args: readonly string[]): Format {
  if (args.includes('--json')) return 'json';
  const at = args.findIndex((arg) => arg === '--print' || arg.startsWith('--print='));
  const given = at < 0 ? undefined : (args[at]!.split('=')[1] ?? args[at + 1]);
  return formats.find((known) => known === given) ?? 'table';
}

/** Reports once that a call is retried: a command that waits silently looks as if it hangs. */
function retryNotes(output: Output): Logger {
  let isSaid = false;
  const warn = (_: object, message: string) => {
    if (!isSaid) output.note(`${plainMessage(message)}. Trying again until --timeout; Ctrl-C ends it.`);
    isSaid = true;
  };
  return { debug: () => {}, warn };
}

addCreateCommands(program, run);
addWatchCommand(program, run);
addJobCommands(program, run);
addDiskCommands(program, run);
addProofCommands(program, run);
addCompareCommand(program, run);
addSweepCommand(program, run);
addDataCommands(program, run);
addEvaluateCommand(program, run);
addGenerateCommand(program, run);
addInfoCommand(program, run);
addExportCommand(program, run);
addWeightsCommands(program, run);
addLoginCommands(program, runAlone);
addWebhookCommands(program, run);
addAuditCommand(program, run);
addUsageCommands(program, run);
addInitCommand(program, runAlone);
addCompletionCommand(program);
nameFlags(program);

// It is not an error if the reader ends early, as in `relora list | head`.
process.stdout.on('error', (error: NodeJS.ErrnoException) =>
  process.exit(error.code === 'EPIPE' ? exitCodes.ok : exitCodes.internal),
);

// Messages are lost if nobody reads them, but the command continues, and its exit code says how it ended.
process.stderr.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') process.exit(exitCodes.internal);
});

try {
  await program.parseAsync();
} catch (error) {
  const isHelp = error instanceof CommanderError && error.exitCode === 0;
  process.exitCode = isHelp ? exitCodes.ok : exitCodeOf(error);
  // Commander has already written its own message, but --json needs another form.
  if (isJson && !isHelp) output.error(error);
  else if (!(error instanceof CommanderError)) output.error(error);
}
