export { isDiskFault } from './diskFault.js';
export { NotBeneath, openBeneath, openWithoutLinks, type OpenedBeneath } from './openBeneath.js';
