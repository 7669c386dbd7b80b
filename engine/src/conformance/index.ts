export { seeded } from './seeded.js';
export { Bench } from './bench.js';
export { casesOf, updateCases, wideCases, type Case } from './cases.js';
export { optimizerCases } from './optimizerCases.js';
export { checkCase, largestDifference, type CaseResult } from './checkCase.js';
export { cudaKernels } from './cudaKernels.js';
