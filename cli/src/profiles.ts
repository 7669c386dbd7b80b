import { chmodSync, mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';
import type { ClientOptions } from '@relora/sdk';
import { UsageError } from './exitCodes.js';

/** How a server is reached, stored under a name. Paths are absolute. */
export interface Profile {
  address: string;
  token?: string;
  tenant?: string;
  caFile?: string;
  certificateFile?: string;
  keyFile?: string;
  plainTextToken?: boolean;
}

interface ProfileFile {
  /** The profile for commands that name neither a profile nor an address. */
  current: string | null;
  profiles: Record<string, Profile>;
}

export function profilePath(environment: NodeJS.ProcessEnv = process.env): string {
  const usual = process.platform === 'win32' ? environment.APPDATA : undefined;
  const folder = environment.XDG_CONFIG_HOME || usual || join(homedir(), '.config');
  return join(folder, 'relora', 'profiles.json');
}

/** Throws if others may read the file, because it contains tokens. */
export function readProfiles(path = profilePath()): ProfileFile {
  let text: string;
  try {
    const { mode } = statSync(path);
    // Windows reports such a mode for every file; there, a user's own folder is closed to others.
    if (process.platform !== 'win32' && (mode & 0o077) !== 0)
      throw new UsageError(`Other users can read ${path}, which has tokens: chmod 600 ${path}`);
    text = readFileSync(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return { current: null, profiles: {} };
    throw error;
  }
  try {
    const { current, profiles } = JSON.parse(text) as ProfileFile;
    if (typeof profiles === 'object' && profiles !== null) return { current, profiles };
  } catch {
    // Reported below, without the content.
  }
  throw new UsageError(`${path} is not a file that relora login wrote; remove it and log in again`);
}

export function writeProfiles(file: ProfileFile, path = profilePath()): void {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  const temporary = `${path}.tmp`;
  writeFileSync(temporary, `${JSON.stringify(file, null, 2)}\n`, { mode: 0o600 });
  chmodSync(temporary, 0o600);
  renameSync(temporary, path);
}

export interface ServerChoice {
  address?: string | undefined;
  profile?: string | undefined;
  tenant?: string | undefined;
}

/**
 * The server that flags and environment select, and how to connect to it. A profile is used completely or not at all: its token must never
 * be sent to another address.
 */
export function chooseServer(
  flags: ServerChoice,
  environment: NodeJS.ProcessEnv = process.env,
): Pick<ClientOptions, 'address' | 'token' | 'tenant' | 'tls' | 'plainTextToken'> {
  const tenant = flags.tenant === undefined ? {} : { tenant: flags.tenant };
  if (flags.address && flags.profile)
    throw new UsageError('--address and --profile both name a server; use only one of them');
  if (namedProfile(flags, environment) === undefined && isAddressed(flags, environment))
    return { ...tenant, ...(flags.address ? { address: flags.address } : {}) };
  const { current, profiles } = readProfiles(profilePath(environment));
  const name = usedProfile(flags, current, environment);
  if (name === null) return tenant;
  const profile = Object.hasOwn(profiles, name) ? profiles[name] : undefined;
  if (profile === undefined)
    throw new UsageError(`There is no profile ${JSON.stringify(name)}; relora login --name creates one`);
  return { ...optionsOf(profile), ...tenant };
}

/** The profile that commands use; null for none. */
export function usedProfile(
  flags: ServerChoice,
  current: string | null,
  environment: NodeJS.ProcessEnv = process.env,
): string | null {
  return namedProfile(flags, environment) ?? (isAddressed(flags, environment) ? null : current);
}

/** The profile that the flag or the variable names; an address in a flag takes precedence over the variable. */
export function namedProfile(
  flags: ServerChoice,
  environment: NodeJS.ProcessEnv = process.env,
): string | undefined {
  return flags.profile ?? (flags.address ? undefined : environment.RELORA_PROFILE || undefined);
}

function isAddressed(flags: ServerChoice, environment: NodeJS.ProcessEnv): boolean {
  return Boolean(flags.address ?? environment.RELORA_ADDRESS);
}

export function optionsOf(profile: Profile): ReturnType<typeof chooseServer> {
  const { address, token, tenant, caFile, certificateFile, keyFile, plainTextToken } = profile;
  const hasTls = caFile !== undefined || certificateFile !== undefined;
  return {
    address,
    // Empty means none, and not the token in the environment, which is for another server.
    token: token ?? '',
    tenant: tenant ?? '',
    ...(plainTextToken === undefined ? {} : { plainTextToken }),
    // Nor the files that the environment names.
    tls: hasTls && {
      ...(caFile === undefined ? {} : { rootCertificates: readFileSync(caFile) }),
      ...(certificateFile === undefined ? {} : { certificateChain: readFileSync(certificateFile) }),
      ...(keyFile === undefined ? {} : { privateKey: readFileSync(keyFile) }),
    },
  };
}
