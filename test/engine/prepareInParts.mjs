// Prepares a data set with `options` in JSON, and prints each progress value on a line. Meant to be killed.
import { prepareDataset } from '@relora/engine/data';

const options = JSON.parse(process.argv[2]);
await prepareDataset(options, (share) => console.log(share), new AbortController().signal);
