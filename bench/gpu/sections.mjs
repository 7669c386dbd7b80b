import { performance } from 'node:perf_hooks';
import { cardOptions, openCard } from './card.mjs';

/** Seconds after which rows that were begun in time must have ended. */
const graceSeconds = 8;

/**
 * Runs sections one after another and writes each row at once, after one that describes the card: without a card nothing else runs. A
 * section exports `name`, `title`, `seconds` (what it needs at least, which the sections before it leave to it) and `run`, which yields
 * rows and begins none without `secondsLeft`. Ends the process: in time even if a section does not.
 * @param {import('./report.mjs').Report} report
 * @param {Record<string, any>} options as from readOptions
 * @param {() => object | Promise<object>} prepare returns more for `run`, once the card is known to work
 * @param {(context: Record<string, any>) => Iterable<{ section: string, row: object }>} atEnd rows that follow from all others
 */
export async function runSections(report, options, prepare = () => ({}), atEnd = () => []) {
  const begin = performance.now();
  const totalLeft = () => options.seconds - (performance.now() - begin) / 1e3;
  const waiting = [...options.sections];
  let card;
  const open = (precision) => openCard((card ??= cardOptions(options)), precision);
  const context = { ...options, open };

  const end = (reason) => {
    for (const { name, title } of waiting)
      report.add(name, { what: title, outcome: 'not run', figures: reason });
    for (const { section, row } of atEnd(context)) report.add(section, row);
    report.end();
    process.exit(report.counts.FAULT === 0 ? 0 : 1);
  };
  setTimeout(() => end('the time is over'), 1000 * (options.seconds + graceSeconds));

  try {
    report.add('card', describeCard(open));
  } catch (error) {
    report.add('card', faultOf('the card', error));
    end('there is no card to run it on');
  }
  Object.assign(context, await prepare());

  while (waiting.length > 0) {
    const [section, ...later] = waiting;
    const kept = later.reduce((sum, { seconds }) => sum + seconds, 0);
    const ownEnd = Math.max(totalLeft() - kept, Math.min(totalLeft(), section.seconds));
    const shareEnd = performance.now() + 1e3 * ownEnd;
    const secondsLeft = () => (shareEnd - performance.now()) / 1e3;
    try {
      if (secondsLeft() <= 0)
        report.add(section.name, { what: section.title, outcome: 'not run', figures: 'the time is over' });
      else for await (const row of section.run({ ...context, secondsLeft })) report.add(section.name, row);
    } catch (error) {
      // An error that ends a section becomes a row of the report, and later sections still run.
      report.add(section.name, faultOf(section.title, error));
    }
    waiting.shift();
  }
  end();
}

/** A row about an error: a reason and its remedy where the engine knows them, otherwise where it happened. */
function faultOf(what, error) {
  const figures =
    error.reason === undefined ? (error.stack ?? String(error)) : `${error.reason}: ${error.message}`;
  return { what, outcome: 'FAULT', figures };
}

function describeCard(open) {
  const device = open('bfloat16');
  const { model, instructionSet, libraries } = device.description;
  const { totalBytes, freeBytes } = device.card.memory();
  device.close();
  const named = Object.entries(libraries).map(([name, value]) => `${name} ${value}`);
  const memory = `${(totalBytes / 2 ** 30).toFixed(1)} GiB, ${(freeBytes / 2 ** 30).toFixed(1)} free`;
  return { what: model, outcome: 'ok', figures: [instructionSet, memory, ...named].join(', ') };
}
