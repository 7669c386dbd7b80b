import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const folder = fileURLToPath(new URL('../../proto/relora/v1', import.meta.url));
const text = readdirSync(folder)
  .map((file) => readFileSync(join(folder, file), 'utf8'))
  .join('\n');

/** Fields of a message of the contract in camel case, including those of its oneofs, with their comments. */
export function fieldsOf(message: string): Map<string, string> {
  const body = new RegExp(`^message ${message} \\{\\n([\\s\\S]*?)^\\}`, 'm').exec(text)?.[1];
  if (body === undefined) throw new Error(`The contract has no message ${message}`);
  const fields = new Map<string, string>();
  let comment: string[] = [];
  for (const line of body.split('\n').map((each) => each.trim())) {
    const name = /^(?:optional |repeated )?[\w.<>, ]+ (\w+) = \d+/.exec(line)?.[1];
    if (line.startsWith('//')) comment.push(line.slice(2).trim());
    else if (name !== undefined) {
      fields.set(
        name.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase()),
        comment.join(' '),
      );
    }
    if (!line.startsWith('//')) comment = [];
  }
  return fields;
}

/** Values of an enum of the contract as they are sent. */
export function valuesOf(enumeration: string): string[] {
  const body = new RegExp(`^enum ${enumeration} \\{\\n([\\s\\S]*?)^\\}`, 'm').exec(text)?.[1];
  if (body === undefined) throw new Error(`The contract has no enum ${enumeration}`);
  return [...body.matchAll(/^ {2}(\w+) = \d+/gm)].map((match) => match[1]!);
}
