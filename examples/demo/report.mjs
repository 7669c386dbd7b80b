import { bytes, duration, quantity, table } from '@relora/cli';

/** The table at the end: what was learned, what it cost, and the evidence that merging changed nothing. */
export function reportLines(progress, compressors) {
  const [before, after] = [progress.evaluations[0], progress.evaluations.at(-1)];
  const { trainedTokens, trainingSeconds } = progress;
  const perByte = (value) => (value === null ? 'not installed' : `${value.toFixed(3)} bits/byte`);
  const rows = [
    ['held-out text before training', perByte(before.bitsPerByte)],
    ['held-out text after training', perByte(after.bitsPerByte)],
    ['  the same text by gzip -9', perByte(compressors.gzip)],
    ['  the same text by xz -9', perByte(compressors.xz)],
    ['merges', `${progress.restarts.length}, and one for the download`],
    [
      'largest change of a logit at a merge',
      Math.max(...progress.restarts.map(({ logitChange }) => logitChange)).toExponential(1),
    ],
    [
      'effective rank of the change',
      progress.restarts.map(({ effectiveRank }) => effectiveRank.toFixed(1)).join(' → '),
    ],
    [
      'speed',
      `${quantity(trainedTokens / trainingSeconds)} tokens/s, ${quantity(trainedTokens)} tokens in ${duration(trainingSeconds)}`,
    ],
    ['memory of the trainer', `${bytes(progress.residentBytesMax)} at its peak`],
  ];
  return table(rows);
}
