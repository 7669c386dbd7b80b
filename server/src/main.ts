#!/usr/bin/env node
import { hearSignals } from './signals.js';

// Asked every few seconds by container runtimes: it loads nothing else.
if (process.argv[2] === 'health') await (await import('./admin/healthCommand.js')).healthCommand();

// Before anything else is loaded, which takes longer than a container runtime may wait: the kernel drops what the first process
// of a container does not listen for.
const signals = hearSignals();
const { run } = await import('./run.js');
await run(signals);
