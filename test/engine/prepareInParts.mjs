// Prepares a data set as `options` in JSON says, and prints each share done on a line. It is meant to be killed.
import { prepareDataset } from '@relora/engine/data';

const options = JSON.parse(process.argv[2]);
await prepareDataset(options, (share) => console.log(share), new AbortController().signal);
