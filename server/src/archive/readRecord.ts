import { createReadStream } from 'node:fs';
import { toEventRow } from '../jobs/jobRow.js';
import type { EventRow, StepSpanRow } from '../store/schema.js';
import { toSpanRow, type StepEntry } from '../jobs/stepSpans.js';
import { manifestFile, type ArchiveFile } from './describeJob.js';
import {
  lineBytesMax,
  manifestBytesMax,
  readLine,
  recordFile,
  type LineOf,
  type RecordLine,
} from './jobRecord.js';

/** The files of an archive are not those of one job; the message says what is wrong. */
export class ArchiveInvalid extends Error {
  override name = 'ArchiveInvalid';
}

/** The content of a record except for its events. */
export interface JobRecord {
  job: LineOf<'job'>;
  updates: LineOf<'update'>[];
  checkpoints: LineOf<'checkpoint'>[];
  artifacts: LineOf<'artifact'>[];
  evaluations: LineOf<'evaluation'>[];
  datasets: LineOf<'dataset'>[];
}

/** Limit for the lines other than events, which are kept in memory. */
const othersBytesMax = 64 << 20;

/**
 * Reads a record and checks that it is complete and consistent: every line is valid, the journal has no gap and ends where the job says,
 * and the last line counts the others. Throws ArchiveInvalid.
 */
export async function readRecord(path: string): Promise<JobRecord> {
  const record: Omit<JobRecord, 'job'> = {
    updates: [],
    checkpoints: [],
    artifacts: [],
    evaluations: [],
    datasets: [],
  };
  let job: LineOf<'job'> | undefined;
  let sequence = 0;
  let othersBytes = 0;
  for await (const { line, bytes } of recordLines(path)) {
    if (job === undefined) {
      if (line.kind !== 'job') throw new ArchiveInvalid(`${recordFile} begins with the line of a job`);
      job = line;
      continue;
    }
    if (line.kind !== 'event' && (othersBytes += bytes) > othersBytesMax)
      throw new ArchiveInvalid(`${recordFile} has at most ${othersBytesMax} bytes besides events`);
    switch (line.kind) {
      case 'update':
        record.updates.push(line);
        break;
      case 'checkpoint':
        record.checkpoints.push(line);
        break;
      case 'artifact':
        record.artifacts.push(line);
        break;
      case 'evaluation':
        record.evaluations.push(line);
        break;
      case 'dataset':
        record.datasets.push(line);
        break;
      case 'event':
        if (line.firstSequence !== sequence + 1 || line.sequence < line.firstSequence)
          throw new ArchiveInvalid(
            `the journal continues with event ${sequence + 1}, not with ${line.firstSequence}`,
          );
        if (line.sequence > line.firstSequence && line.body.kind !== 'step')
          throw new ArchiveInvalid(`event ${line.sequence} is a step: no other stands for several`);
        sequence = line.sequence;
        break;
      case 'job':
        throw new ArchiveInvalid(`${recordFile} is about one job`);
      case 'end':
        break;
    }
  }
  if (job === undefined) throw new ArchiveInvalid(`${recordFile} is empty`);
  if (sequence !== job.lastSequence)
    throw new ArchiveInvalid(`the journal has ${job.lastSequence} events, not ${sequence}`);
  return { job, ...record };
}

/** The events of the journal, as rows for the store. */
export async function* journalRows(
  path: string,
  jobId: string,
): AsyncGenerator<{ event: EventRow } | { span: StepSpanRow }> {
  for await (const { line } of recordLines(path)) {
    if (line.kind !== 'event') continue;
    const { sequence, firstSequence, timeMs, attempt, final, body } = line;
    const entry = { sequence, firstSequence, timeMs, attempt, final, body };
    yield sequence > firstSequence
      ? { span: toSpanRow(jobId, entry as StepEntry, true) }
      : { event: toEventRow(jobId, entry) };
  }
}

/** Throws ArchiveInvalid unless the files are exactly those that the record names, with the same digests. */
export function requireFiles(record: JobRecord, files: readonly ArchiveFile[]): void {
  const expected = new Map<string, ArchiveFile>();
  for (const { folder, files: ofCheckpoint, manifestSha256 } of record.checkpoints) {
    requireManifest(`checkpoint ${folder}`, ofCheckpoint, manifestSha256);
    for (const file of ofCheckpoint) expected.set(`checkpoints/${folder}/${file.fileName}`, file);
  }
  for (const { id, files: ofArtifact } of record.artifacts)
    for (const file of ofArtifact) expected.set(`artifacts/${id}/${file.fileName}`, file);
  for (const { name, files: ofDataset, manifestSha256 } of record.datasets) {
    requireManifest(name, ofDataset, manifestSha256);
    for (const file of ofDataset) expected.set(`${name}/${file.fileName}`, file);
  }
  for (const { fileName, sizeBytes, sha256 } of files.slice(1)) {
    const file = expected.get(fileName);
    if (file === undefined) throw new ArchiveInvalid(`${fileName} is a file that the record names`);
    if (file.sha256 !== sha256 || file.sizeBytes !== sizeBytes)
      throw new ArchiveInvalid(
        `${fileName} has ${file.sizeBytes} bytes of SHA-256 ${file.sha256}, as the record says`,
      );
    expected.delete(fileName);
  }
  const [missing] = expected.keys();
  if (missing !== undefined) throw new ArchiveInvalid(`there is ${missing}, which the record names`);
}

function requireManifest(what: string, files: readonly ArchiveFile[], expected: string): void {
  const manifest = files.find(({ fileName }) => fileName === manifestFile);
  if (manifest?.sha256 !== expected)
    throw new ArchiveInvalid(`${what} has the manifest of SHA-256 ${expected}`);
  if (manifest.sizeBytes > manifestBytesMax)
    throw new ArchiveInvalid(`the manifest of ${what} has at most ${manifestBytesMax} bytes`);
}

/** Lines with their lengths, which are about the memory that they take. */
async function* recordLines(path: string): AsyncGenerator<{ line: RecordLine; bytes: number }> {
  let rest = '';
  let number = 0;
  let end: LineOf<'end'> | undefined;
  const parse = (text: string): { line: RecordLine; bytes: number } => {
    number++;
    if (end !== undefined) throw new ArchiveInvalid(`${recordFile} ends with line ${number - 1}`);
    const line = readLine(text);
    if (line === undefined)
      throw new ArchiveInvalid(`line ${number} of ${recordFile} is one that this server knows`);
    if (line.kind === 'end') end = line;
    return { line, bytes: text.length };
  };
  for await (const piece of createReadStream(path, { encoding: 'utf8', highWaterMark: 1 << 18 })) {
    const texts = (rest + (piece as string)).split('\n');
    rest = texts.pop()!;
    for (const text of texts) yield parse(text);
    if (rest.length > lineBytesMax)
      throw new ArchiveInvalid(`lines of ${recordFile} have at most ${lineBytesMax} bytes`);
  }
  if (rest !== '') throw new ArchiveInvalid(`${recordFile} ends with the end of a line`);
  if (end?.lineCount !== number - 1) throw new ArchiveInvalid(`${recordFile} is whole: it counts its lines`);
}
