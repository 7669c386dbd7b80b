export { LiveView, type ViewStream } from './liveView.js';
export { bytes, duration, figure, quantity, table } from './format.js';
