/** A fenced block of a page, with the comments about it, which readers do not see. */
export interface Block {
  page: string;
  line: number;
  language: string;
  text: string;
  /** `<!-- not run: why -->`: the block needs something that a test does not have. */
  notRun: string | undefined;
  /** `<!-- server -->`: its last command keeps running, in a terminal of its own. */
  isServer: boolean;
  /** `<!-- fails -->`: its last command must be refused. */
  isRefused: boolean;
  /** `<!-- file: name -->`: the content of a file that later commands use. */
  file: string | undefined;
}

/** The blocks of a page in order. Commands in indented blocks would not be found, so there must be none. */
export function blocksOf(page: string, content: string): Block[] {
  const blocks: Block[] = [];
  const lines = content.split('\n');
  let marks: string[] = [];
  for (let at = 0; at < lines.length; at++) {
    const line = lines[at]!;
    const mark = /^<!-- (.*) -->$/.exec(line)?.[1];
    const fence = /^```(\w*)$/.exec(line);
    if (mark !== undefined) marks.push(mark);
    else if (fence !== null) {
      const end = lines.indexOf('```', at + 1);
      if (end < 0) throw new Error(`${page}:${at + 1}: the block has no end`);
      const value = (name: string) =>
        marks.find((each) => each.startsWith(`${name}: `))?.slice(name.length + 2);
      blocks.push({
        page,
        line: at + 1,
        language: fence[1]!,
        text: lines.slice(at + 1, end).join('\n'),
        notRun: value('not run'),
        isServer: marks.includes('server'),
        isRefused: marks.includes('fails'),
        file: value('file'),
      });
      marks = [];
      at = end;
    } else if (line.trim() !== '') marks = [];
    if (/^ {4}(\$ |npx |npm |node |relora|curl |grpcurl |RELORA_|docker )/.test(line))
      throw new Error(`${page}:${at + 1}: a command stands outside of a block of sh`);
  }
  return blocks;
}

/** Whether an output matches what a page shows, in which `…` stands for anything, including several lines. */
export function isShown(shown: string, output: string): boolean {
  const parts = shown.trim().split('…');
  const pattern = parts.map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')).join('[^]*?');
  return new RegExp(`^${pattern}$`).test(output.trim().replace(/[ \t]+$/gm, ''));
}
