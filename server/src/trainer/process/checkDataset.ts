import { Dataset, idleSequencesText, unknownTextOf, type DatasetManifest } from '@relora/engine/data';
import type { PreparedDataset } from '../../datasets/dataset.js';
import type { DatasetWarning } from '../../errors.js';

/** Opens a prepared data set as a run would, verifies every hash, and returns its description. */
export async function checkDataset(folder: string): Promise<PreparedDataset> {
  const dataset = await Dataset.open(folder, { verify: true });
  try {
    const { manifest, manifestSha256 } = dataset;
    const size = ({ tokens, documents, bytes, duplicates, trained, endsWithin }: typeof manifest.train) => ({
      tokenCount: tokens,
      documentCount: documents,
      textBytes: bytes,
      duplicateDocumentCount: duplicates ?? 0,
      trainedTokenCount: trained?.tokens ?? tokens,
      ...(endsWithin !== undefined && { endsWithinCount: endsWithin }),
    });
    return {
      tokenizer: manifest.tokenizer,
      train: size(manifest.train),
      heldOut: size(manifest.heldOut),
      manifestSha256,
      ...skippedRows(manifest.skipped),
      warnings: await warningsOf(dataset),
    };
  } finally {
    await dataset.close();
  }
}

function skippedRows(skipped: DatasetManifest['skipped']): Pick<PreparedDataset, 'skippedRows'> {
  if (skipped === undefined) return {};
  const { rows: rowCount, of: totalRowCount, first } = skipped;
  return { skippedRows: { rowCount, totalRowCount, first } };
}

async function warningsOf({ manifest, train }: Dataset): Promise<NonNullable<PreparedDataset['warnings']>> {
  const warnings: { reason: DatasetWarning; message: string }[] = [];
  const { skipped } = manifest;
  if (skipped !== undefined) {
    const message = `${skipped.rows} of ${skipped.of} rows were left out; the first: ${skipped.first[0]?.message}`;
    warnings.push({ reason: 'ROWS_SKIPPED', message });
  }
  const idle = manifest.train.trained === undefined ? null : await idleSequencesText(train);
  if (idle !== null) warnings.push({ reason: 'PROMPTS_LONG', message: idle });
  const unknown = unknownTextOf(manifest);
  if (unknown !== null) warnings.push({ reason: 'TEXT_UNKNOWN', message: unknown });
  return warnings;
}
