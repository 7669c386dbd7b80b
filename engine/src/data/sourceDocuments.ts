import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { writeNewFile } from '../io/durableFile.js';

/** Beside the manifest, which is what it always was: which files the documents of the training part were in. */
const sourcesFile = 'sources.json';

/** Documents of a file that are trained on, in the order of the training part. */
export interface SourceDocuments {
  file: string;
  documents: number;
}

/** Counts documents as they are written. */
export class SourceCounter {
  private readonly sources: SourceDocuments[];

  /** @param mark of an earlier try, to continue it */
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
  await rm(join(folder, sourcesFile), { force: true }); // of a try that was ended here
  await writeNewFile(join(folder, sourcesFile), `${JSON.stringify(sources)}\n`);
}

/** Empty for a data set that was prepared before they were kept. */
export async function readSources(folder: string): Promise<SourceDocuments[]> {
  try {
    return JSON.parse(await readFile(join(folder, sourcesFile), 'utf8')) as SourceDocuments[];
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
}

/** Those of a base before those that were added; nothing where the base does not know its own. */
export async function joinSources(baseFolder: string, addedFolder: string, folder: string): Promise<void> {
  const [base, added] = [await readSources(baseFolder), await readSources(addedFolder)];
  if (base.length > 0) await writeSources(folder, [...base, ...added]);
}

/** The file of a document of the training part, and its number there. */
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
