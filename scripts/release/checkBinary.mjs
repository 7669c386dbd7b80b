// Checks that a file is for its target, and needs nothing that some systems of this kind lack.
import { readFileSync } from 'node:fs';
import { compareVersions, glibcNeeded, platformText, readBinary } from '@relora/engine/binaries';
import { glibcMax, macosMin } from './targets.mjs';

/** The file's problems, in words; empty if there are none. */
export function problemsOf(path, { platform, libraries }) {
  const binary = readBinary(readFileSync(path));
  if (binary === null) return [`${path} is no library or program`];
  const problems = [];
  const { os, arch } = binary;
  // A program that needs no system library runs with every libc.
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
