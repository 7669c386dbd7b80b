import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import { askServer } from '../admin/askServer.js';
import type { Config } from '../config.js';
import { Confinement } from '../trainer/confinement.js';
import type { FoundDevices } from '../trainer/messages.js';
import { TaskRunner } from '../trainer/taskRunner.js';
import { trainerEntry } from '../trainer/trainerProcess.js';
import { version } from '../version.js';
import { cardCheckFindings } from './cardCheck.js';
import { faultOfDevices, findingsOfDevices, librariesFinding } from './devices.js';
import { fault, type Finding } from './finding.js';
import {
  clockFinding,
  dataFolderFinding,
  diskFinding,
  memoryFinding,
  openFilesFinding,
  portFinding,
  sandboxFinding,
} from './machine.js';

/** What a running server reports to the doctor. */
export interface ServerHealth extends FoundDevices {
  problem: string | null;
  /** Why trainers on a card are not confined; null if they are, or if there is no card. */
  unconfinedCards: string | null;
}

export interface Diagnosis {
  version: string;
  /** True if there are no faults. */
  ok: boolean;
  /** Whether a server runs on the data folder; if so, its answers are included. */
  isRunning: boolean;
  findings: Finding[];
}

/**
 * Checks everything that a server needs, with the settings that it would have. Changes nothing.
 * @param check options for the check of each card; null: the cards are not tested
 */
export async function diagnose(config: Config, check: readonly string[] | null = null): Promise<Diagnosis> {
  let findings: Finding[] = [];
  const health = (
    await askServer<ServerHealth>(config.dataFolder, 'doctor/health', {}).catch((error: unknown) => {
      findings.push(
        fault(
          'server',
          `The server on the data folder does not answer: ${(error as Error).message}`,
          'restart it',
        ),
      );
      return undefined;
    })
  )?.result;
  const isRunning = health !== undefined;
  if (health !== undefined && health.problem !== null)
    findings.push(
      fault('server', `It is running but takes no jobs: ${health.problem}`, 'correct what the message names'),
    );
  const confinement = new Confinement(config);
  const found = health ?? (await lookForDevices(config, confinement));
  if (found instanceof Error) {
    findings.push(faultOfDevices(found));
  } else findings = findings.concat(findingsOfDevices(found, config), librariesFinding(found, config));
  const devices = found instanceof Error ? [] : found.devices;
  if (check !== null) findings = findings.concat(await cardCheckFindings(devices, config, check));
  const hasCards = devices.some(({ backend }) => backend === 'cuda');
  const unconfinedCards = (health ?? confinement).unconfinedCards;
  findings = findings.concat(
    memoryFinding(config),
    openFilesFinding(config),
    sandboxFinding(config, confinement, hasCards ? unconfinedCards : null),
  );
  findings.push(await diskFinding(config));
  if (!isRunning)
    for (const name of ['grpcAddress', 'httpAddress'] as const)
      findings.push(await portFinding(config, name));
  findings.push(await clockFinding(config), await dataFolderFinding(config, isRunning));
  return { version, ok: findings.every(({ state }) => state !== 'fault'), isRunning, findings };
}

/** Runs in a child, as in the server: a fault in native code or a driver ends only the child. */
async function lookForDevices(config: Config, confinement: Confinement): Promise<FoundDevices | Error> {
  const folder = await mkdtemp(join(tmpdir(), 'relora-doctor-'));
  const log = pino({ level: 'silent' });
  const tasks = new TaskRunner({ ...config, dataFolder: folder }, log, trainerEntry, confinement);
  try {
    return await tasks.describeDevices();
  } catch (error) {
    return error as Error;
  } finally {
    await tasks.stop();
    await rm(folder, { recursive: true, force: true });
  }
}

/** For people: one line per finding, and below it what to do. */
export function textOf({ findings, isRunning, version, ok }: Diagnosis): string {
  const width = Math.max(...findings.map(({ name }) => name.length));
  const lines = findings.flatMap(({ name, state, message, cure }) => [
    `${state.padEnd(7)}  ${name.padEnd(width)}  ${message}`,
    ...(cure === null ? [] : [`${' '.repeat(11 + width)}to do: ${cure}`]),
  ]);
  const faults = findings.filter(({ state }) => state === 'fault').length;
  const head = `relora-server ${version}; ${isRunning ? 'asked the server that runs on the data folder' : 'no server runs on the data folder'}`;
  return [
    head,
    ...lines,
    ok ? 'No fault was found.' : `${faults} ${faults === 1 ? 'fault' : 'faults'}.`,
    '',
  ].join('\n');
}
