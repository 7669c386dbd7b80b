import { resolve } from 'node:path';
import { text } from 'node:stream/consumers';
import type { Command } from 'commander';
import { ReloraClient } from '@relora/sdk';
import { UsageError } from './exitCodes.js';
import { table } from './format.js';
import {
  namedProfile,
  optionsOf,
  profilePath,
  readProfiles,
  usedProfile,
  writeProfiles,
  type Profile,
} from './profiles.js';
import { deadlineOf, type RunAlone } from './session.js';

interface LoginOptions {
  name?: string;
  ca?: string;
  certificate?: string;
  key?: string;
  plainTextToken?: true;
  token: boolean;
}

/** Profiles: servers with their tokens, in a file that only its owner may read. */
export function addLoginCommands(program: Command, runAlone: RunAlone): void {
  program
    .command('login')
    .description(
      'store the address of a server and a token as a profile; the token is asked for, or read from standard input',
    )
    .argument('<host:port>', 'the server; https://host:port for TLS')
    .option(
      '--name <profile>',
      'name of the profile; by default that of --profile or RELORA_PROFILE, or "default"',
    )
    .option('--ca <file>', 'certificate authority of the server in PEM, if the system does not trust it')
    .option('--certificate <file>', 'own certificate in PEM, if the server requires one')
    .option('--key <file>', 'private key of that certificate')
    .option('--no-token', 'log in without a token, with the certificate only')
    .option('--plain-text-token', 'allow sending the token without TLS to another machine')
    .action((address: string, options: LoginOptions) =>
      runAlone(async (output, flags) => {
        const { tenant } = flags;
        const name = checkedName(options.name ?? namedProfile(flags) ?? 'default');
        const file = readProfiles();
        const token = options.token ? await readToken() : undefined;
        const profile: Profile = {
          address,
          ...(token === undefined ? {} : { token }),
          ...(tenant === undefined ? {} : { tenant }),
          ...(options.ca === undefined ? {} : { caFile: resolve(options.ca) }),
          ...(options.certificate === undefined ? {} : { certificateFile: resolve(options.certificate) }),
          ...(options.key === undefined ? {} : { keyFile: resolve(options.key) }),
          ...(options.plainTextToken === true ? { plainTextToken: true } : {}),
        };
        // A profile that does not work is not stored.
        using client = new ReloraClient({ ...optionsOf(profile), ...deadlineOf(flags) });
        output.address = client.address;
        const { version } = await client.serverInfo();
        writeProfiles({ current: name, profiles: { ...file.profiles, [name]: profile } });
        output.result({ profile: name, address, version }, () => [
          `Logged in to ReLoRA server ${version} at ${address} as profile ${name}`,
        ]);
      }),
    );
  program
    .command('logout')
    .description('remove a profile and its token')
    .argument(
      '[profile]',
      'name of the profile; by default that of --profile or RELORA_PROFILE, or the last one',
    )
    .action((given: string | undefined) =>
      runAlone(async (output, flags) => {
        const { current, profiles } = readProfiles();
        const name = given ?? namedProfile(flags) ?? current;
        if (name === null || !Object.hasOwn(profiles, name))
          throw new UsageError(`There is no profile ${JSON.stringify(name ?? '')}`);
        const { [name]: _, ...left } = profiles;
        writeProfiles({ current: current === name ? null : current, profiles: left });
        output.result({ profile: name }, () => [`Removed profile ${name}`]);
      }),
    );
  program
    .command('profiles')
    .description('list the profiles; * marks the one in use')
    .action(() =>
      runAlone(async (output, flags) => {
        const { current, profiles } = readProfiles();
        const used = usedProfile(flags, current);
        const rows = Object.entries(profiles).map(([name, { address, tenant = '', token }]) => ({
          name,
          isCurrent: name === used,
          address,
          tenant,
          hasToken: token !== undefined,
        }));
        const cells = rows.map(({ name, isCurrent, address, tenant, hasToken }) => [
          `${name}${isCurrent ? ' *' : ''}`,
          address,
          tenant,
          hasToken ? 'yes' : 'no',
        ]);
        output.result({ file: profilePath(), profiles: rows }, () =>
          cells.length === 0
            ? ['No profiles; relora login creates one.']
            : table([['PROFILE', 'ADDRESS', 'TENANT', 'TOKEN'], ...cells]),
        );
      }),
    );
}

function checkedName(name: string): string {
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/.test(name))
    throw new UsageError('The name of a profile has 1 to 63 of A-Z, a-z, 0-9 and . _ -');
  return name;
}

/** Never an argument: arguments are in the shell history and in the list of processes. */
async function readToken(): Promise<string> {
  const typed = process.stdin.isTTY ? await askHidden('Token: ') : await text(process.stdin);
  const token = typed.trim();
  if (token === '' || /\s/.test(token))
    throw new UsageError(
      'No token was given: type it, or pipe it into standard input; use --no-token to log in without one',
    );
  return token;
}

async function askHidden(question: string): Promise<string> {
  process.stderr.write(question);
  const { stdin } = process;
  stdin.setRawMode(true);
  let typed = '';
  try {
    for await (const chunk of stdin) {
      for (const character of String(chunk)) {
        if (character === '\r' || character === '\n') return typed;
        if (character === '\u0003') throw new UsageError('Interrupted');
        // On Windows the Backspace key sends the second one.
        const isBack = character === '\u007f' || character === '\b';
        typed = isBack ? typed.slice(0, -1) : typed + character;
      }
    }
    return typed;
  } finally {
    stdin.setRawMode(false);
    stdin.pause();
    process.stderr.write('\n');
  }
}
