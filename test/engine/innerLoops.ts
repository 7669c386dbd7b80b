/** Jumps as printed by objdump: `backward` matches those that may close a loop, with their target, `any` all of them. */
export interface Jumps {
  backward: RegExp;
  any: RegExp;
}

/** Instructions from the target of each backward jump to the jump, if no other jump is between them. */
export function innerLoops(disassembly: string, { backward, any }: Jumps): string[][] {
  const lines = disassembly
    .split('\n')
    .map((line) => /^\s*([0-9a-f]+):\s+(.*?)(?:\s*(?:\/\/|<).*)?$/.exec(line));
  const indexOf = new Map(lines.map((line, index) => [line?.[1], index]));
  return lines.flatMap((line, end) => {
    const target = backward.exec(line?.[2] ?? '')?.[1];
    const begin = target === undefined ? undefined : indexOf.get(target);
    if (begin === undefined || begin >= end) return [];
    const body = lines.slice(begin, end + 1).map((other) => (other?.[2] ?? '').replaceAll('\t', ' '));
    return body.slice(0, -1).some((text) => any.test(text)) ? [] : [body];
  });
}
