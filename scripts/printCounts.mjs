// The end of CI's output: each failed test with its message, so that reading only the end shows what to fix; then the line of counts. node
// scripts/printCounts.mjs REPORT... : JSON reports of vitest.
import { readFileSync } from 'node:fs';
import { relative } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const linesOfMessage = 30;

const print = (file, name, message) => {
  console.log(`FAILED ${relative(root, file)}: ${name}`);
  console.log(message.split('\n').slice(0, linesOfMessage).join('\n'));
};

const counts = { passed: 0, failed: 0, skipped: 0 };
for (const path of process.argv.slice(2)) {
  const report = JSON.parse(readFileSync(path, 'utf8'));
  counts.passed += report.numPassedTests;
  counts.failed += report.numFailedTests;
  counts.skipped += report.numPendingTests + report.numTodoTests;
  for (const { name: file, status, message, assertionResults } of report.testResults) {
    const failed = assertionResults.filter((test) => test.status === 'failed');
    for (const test of failed) print(file, test.fullName, test.failureMessages.join('\n'));
    if (status !== 'failed' || failed.length > 0) continue;
    // A file that could not be loaded has no tests; if its hooks failed, none of its tests failed.
    print(file, 'the file itself', message);
    counts.failed += 1;
  }
}
console.log(`${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped`);
