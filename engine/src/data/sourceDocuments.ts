import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { writeNewFile } from '../io/durableFile.js';

/** Which files the documents of the training part came from. Not in the manifest, whose format it would change. */
const sourcesFile = 'sources.json';

/** Number of documents of a file that are trained on, in the order of the training part. */
export interface SourceDocuments {
  file: string;
  documents: number;
}

/** Counts documents while they are written. */
export class SourceCounter {
  private readonly sources: SourceDocuments[];

  /** @param mark of an earlier attempt, to continue it */
  constructor(mark: readonly SourceDocuments[] = []) {
    this.sources = mark.map((source) => ({ ...source }));
  }

  get mark(): SourceDocuments[] {
    return this.sources.map((source) => ({ ...source }));
  }

  add(file: string): void {
    const last = this.sources.at(-1);
    if (last?.file === file) last.documents++;
    else this.sources.push({ file, documents: 1 });
  }
}

export async function writeSources(folder: string, sources: readonly SourceDocuments[]): Promise<void> {
  await rm(join(folder, sourcesFile), { force: true }); // of an attempt that was interrupted here
  await writeNewFile(join(folder, sourcesFile), `${JSON.stringify(sources)}\n`);
}

/** Empty for a data set prepared before this file existed. */
export async function readSources(folder: string): Promise<SourceDocuments[]> {
  try {
    return JSON.parse(await readFile(join(folder, sourcesFile), 'utf8')) as SourceDocuments[];
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
}

/** Sources of the base followed by those of the addition; nothing if the base has none. */
export async function joinSources(baseFolder: string, addedFolder: string, folder: string): Promise<void> {
  const [base, added] = [await readSources(baseFolder), await readSources(addedFolder)];
  if (base.length > 0) await writeSources(folder, [...base, ...added]);
}

/** The source file of a document of the training part, and the document's number in it. */
export function sourceOf(
  sources: readonly SourceDocuments[],
  index: number | undefined,
): { sourceFile: string; sourceDocument: number | null } {
  let first = 0;
  for (const { file, documents } of sources) {
    if (index !== undefined && index < first + documents)
      return { sourceFile: file, sourceDocument: index - first };
    first += documents;
  }
  return { sourceFile: '', sourceDocument: null };
}
