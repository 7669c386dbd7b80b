import { expect, it } from 'vitest';
import { valueText } from '../../cli/dist/comparisonText.js';

it.each([
  ['', '–'],
  ['"JOB_KIND_LORA"', 'JOB_KIND_LORA'],
  ['0.001', '0.001'],
  ['false', 'false'],
  [
    `[${Array(7).fill('"TARGET_MODULE_Q_PROJ"').join(',')}]`,
    Array(7).fill('TARGET_MODULE_Q_PROJ').join(', '),
  ],
])('a setting that differs is shown whole: %s', (json, text) => {
  expect(valueText(json)).toBe(text);
});
