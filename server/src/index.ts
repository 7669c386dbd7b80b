export { startServer, type RunningServer, type ServerOptions } from './server.js';
export { readConfig, settings, ConfigInvalid, type Config } from './config.js';
export { createLog } from './log.js';
