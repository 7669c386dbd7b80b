import { setLogger } from '@grpc/grpc-js';
import type { Logger } from 'pino';
import { CertificateInvalid } from './certificates.js';
import { backupCommand, backupCommands, backupUsage, BackupUsage } from './backup/backupCommands.js';
import { ConfigInvalid, readConfig, settings, type Config } from './config.js';
import { buildUsage, compileNative } from './buildCommand.js';
import { doctorUsage } from './doctor/usage.js';
import { createLog } from './log.js';
import { startServer, type RunningServer } from './server.js';
import type { Signals } from './signals.js';
import { tokenCommand, tokenUsage } from './access/tokenCommands.js';
import { TokenFileInvalid } from './access/tokenFile.js';
import { TokenRefused } from './access/tokens.js';
import { QuotaFileInvalid } from './quotas/quotaFile.js';
import { StoreUnusable } from './store/storeError.js';
import { version } from './version.js';

/** Exit codes: 0 after a stop, 1 when the server cannot start or continue, 2 for wrong settings or arguments. */
export async function run(signals: Signals): Promise<void> {
  process.umask(0o077);
  const [argument, ...rest] = process.argv.slice(2);
  if (argument === '--help') process.stdout.write(help());
  else if (argument === '--version') process.stdout.write(`${version}\n`);
  else if (argument === 'build') buildNative(rest);
  else if (argument === 'token') await changeTokens(readSettings(), rest);
  else if (argument === 'doctor') await examine(readSettings(), rest);
  else if (argument !== undefined && backupCommands.has(argument))
    await moveStore(readSettings(), argument, rest);
  else if (argument !== undefined)
    exitWith(2, [
      `${argument} is not known; there are doctor, build, token, migrate, backup, restore, health, --help and --version`,
    ]);
  else await serve(readSettings(), signals);
}

async function examine(config: Config, args: readonly string[]): Promise<never> {
  const isJson = args[0] === '--json';
  const [first, ...check] = isJson ? args.slice(1) : args;
  if (first !== undefined && first !== '--check') exitWith(2, [`Expected ${doctorUsage}`]);
  const { diagnose, textOf } = await import('./doctor/doctor.js');
  const diagnosis = await diagnose(config, first === undefined ? null : check);
  process.stdout.write(isJson ? `${JSON.stringify(diagnosis, null, 2)}\n` : textOf(diagnosis));
  process.exit(diagnosis.ok ? 0 : 1);
}

function buildNative(args: readonly string[]): never {
  if (args.length > 0) exitWith(2, [`Expected ${buildUsage}`]);
  process.exit(compileNative() ? 0 : 1);
}

async function changeTokens(config: Config, args: readonly string[]): Promise<void> {
  try {
    await tokenCommand(config, args, {
      out: (text) => process.stdout.write(text),
      note: (text) => process.stderr.write(`${text}\n`),
    });
  } catch (error) {
    exitWith(error instanceof TokenRefused ? 2 : 1, [explain(error)]);
  }
  process.exit(0);
}

async function moveStore(config: Config, command: string, args: readonly string[]): Promise<void> {
  try {
    await backupCommand(config, command, args, (text) => process.stderr.write(`${text}\n`));
  } catch (error) {
    exitWith(error instanceof BackupUsage ? 2 : 1, [explain(error)]);
  }
  process.exit(0);
}

async function serve(config: Config, signals: Signals): Promise<void> {
  const log = createLog(config);
  // gRPC's own messages are not lines of JSON, and repeat what our errors say.
  const asDebug = (...parts: unknown[]): void => log.debug({ from: 'grpc' }, parts.map(String).join(' '));
  setLogger({ error: asDebug, info: asDebug, debug: asDebug });
  let server: RunningServer;
  try {
    server = await startServer(config, { log, onFatal: (error) => endAtOnce(log, error) });
  } catch (error) {
    if (error instanceof ConfigInvalid) exitWith(2, error.problems);
    exitWith(1, [explain(error)]);
  }
  const { grpcAddress, httpAddress, healthAddress } = server;
  const { dataFolder } = config;
  log.info(
    { grpcAddress, httpAddress, ...(healthAddress !== null && { healthAddress }), dataFolder, version },
    `Serving gRPC on ${grpcAddress} and HTTP on ${httpAddress}`,
  );

  signals.onStop((signal) => {
    log.info({ signal }, 'Stopping: jobs are saved and queued');
    server.stop().then(
      () => {
        log.info('Stopped');
        process.exit(0);
      },
      (error: unknown) => endAtOnce(log, error),
    );
  });
}

/** Everything depends on the store: what cannot be stored must not be promised. A process supervisor starts the server again. */
function endAtOnce(log: Logger, error: unknown): never {
  log.fatal({ err: error }, 'The server ends: it cannot continue');
  process.exit(1);
}

function readSettings(): Config {
  try {
    return readConfig();
  } catch (error) {
    if (error instanceof ConfigInvalid) exitWith(2, error.problems);
    throw error;
  }
}

function explain(error: unknown): string {
  if (
    error instanceof StoreUnusable ||
    error instanceof TokenFileInvalid ||
    error instanceof QuotaFileInvalid ||
    error instanceof CertificateInvalid
  )
    return error.message;
  if (!(error instanceof Error)) return String(error);
  if ((error as NodeJS.ErrnoException).code === 'EADDRINUSE') {
    return `${error.message}: stop what listens there, or set RELORA_GRPC_ADDRESS or RELORA_HTTP_ADDRESS`;
  }
  return error.message;
}

function exitWith(code: 1 | 2, lines: readonly string[]): never {
  for (const line of lines) process.stderr.write(`relora-server: ${line}\n`);
  process.exit(code);
}

function help(): string {
  const entries = Object.values(settings).map(
    ({ variable, default: value, range, reason }) =>
      `  ${variable}\n      ${reason}\n      ${range}; default: ${value === '' ? 'none' : value}\n`,
  );
  return (
    `relora-server ${version}\n\nServes training jobs over gRPC. All settings are environment variables, also of ` +
    `these commands:\n\nrelora-server\nrelora-server --help | --version\nrelora-server health\n${doctorUsage}\n${buildUsage}\n${backupUsage}\n${tokenUsage}\n\n${entries.join('')}`
  );
}
