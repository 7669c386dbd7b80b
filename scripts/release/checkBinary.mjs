// Whether a file is for its target, and asks nothing of a system but what every one of that kind has.
import { readFileSync } from 'node:fs';
import { compareVersions, glibcNeeded, platformText, readBinary } from '@relora/engine/binaries';
import { glibcMax, macosMin } from './targets.mjs';

/** What is wrong with the file, in words; nothing where it is as it should be. */
export function problemsOf(path, { platform, libraries }) {
  const binary = readBinary(readFileSync(path));
  if (binary === null) return [`${path} is no library or program`];
  const problems = [];
  const { os, arch } = binary;
  // A program that needs no library of the system serves every libc.
  const libc = binary.libc ?? (binary.libraries.length === 0 ? platform.libc : null);
  if (os !== platform.os || arch !== platform.arch || libc !== platform.libc)
    problems.push(`it is for ${platformText({ os, arch, libc })}, expected ${platformText(platform)}`);
  for (const library of binary.libraries)
    if (!libraries.test(library)) problems.push(`it needs ${library}, which not every system has`);
  const glibc = glibcNeeded(binary);
  if (glibc !== null && compareVersions(glibc, glibcMax) > 0)
    problems.push(`it needs glibc ${glibc}, expected at most ${glibcMax}`);
  for (const version of binary.versions)
    if (!/^GLIBC_[\d.]+$/.test(version)) problems.push(`it needs symbols of ${version}`);
  if (binary.macosMin !== null && compareVersions(binary.macosMin, macosMin) > 0)
    problems.push(`it needs macOS ${binary.macosMin}, expected at most ${macosMin}`);
  return problems.map((problem) => `${path}: ${problem}`);
}
