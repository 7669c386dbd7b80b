/**
 * The targets for one H200. A ratio is to PyTorch in the same run; `found` has the results by the names that sections give them.
 * `limit`: 'least' or 'most', for target and goal; a goal is what is wanted in the end.
 */
export const targets = [
  ratio('G1', 'llama-60m', { target: 1.19, goal: 1.27 }),
  {
    name: 'G1',
    what: 'llama-60m ReLoRA to full rank in PyTorch',
    ...{ limit: 'least', target: 1, goal: 1, unit: 'x' },
    of: (found) => quotient(found, 'llama-60m ReLoRA', 'llama-60m PyTorch full rank'),
  },
  speed('G1', 'llama-60m', 'ReLoRA', { target: 1350, goal: 1450 }),
  ratio('G2', 'llama-350m', { target: 1.07, goal: 1.18 }),
  speed('G2', 'llama-350m', 'ReLoRA', { target: 240, goal: 265 }),
  ratio('G3', 'llama-1b', { target: 1.07, goal: 1.25 }),
  speed('G3', 'llama-1b', 'ReLoRA', { target: 90, goal: 105 }),
  {
    name: 'G4',
    what: 'llama-1b ReLoRA with an FP8 base to the merged graph in PyTorch',
    ...{ limit: 'least', target: 1.29, goal: 1.55, unit: 'x' },
    of: (found) => quotient(found, 'llama-1b FP8 base', 'llama-1b PyTorch merged'),
  },
  speed('G4', 'llama-1b', 'FP8 base', { target: 108, goal: 130 }),
  ...[
    ['llama-60m', 0.97, 0.97],
    ['llama-350m', 1, 1],
    ['llama-1b', 1.15, 1.25],
  ].flatMap(([preset, target, goal]) => [
    {
      name: 'G5',
      what: `${preset} ReLoRA to own full rank`,
      ...{ limit: 'least', target, goal, unit: 'x' },
      of: (found) => quotient(found, `${preset} ReLoRA`, `${preset} full rank`),
    },
    {
      name: 'G5',
      what: `${preset} own full rank to PyTorch's`,
      ...{ limit: 'least', target: 1, goal: 1, unit: 'x' },
      of: (found) => found.get(`${preset} full rank to PyTorch`),
    },
  ]),
  most('G6', 'llama-1b ReLoRA, 8,192 tokens, at full speed', { target: 16, unit: 'GB' }),
  most('G6', 'llama-1b ReLoRA, 8,192 tokens, at its least', { target: 8.5, unit: 'GB' }),
  most('G7', 'llama-1b merge, pack and proof at a restart', { target: 3, unit: 'steps' }),
  most('G8', 'llama-350m share of a step that the host takes', { target: 2, unit: '%' }),
  most('G8', 'llama-60m share of a step that the host takes', { target: 10, unit: '%' }),
  {
    name: 'G9',
    what: 'llama-9m: how often `auto` takes the faster of card and processor',
    ...{ limit: 'least', target: 100, goal: 100, unit: '%' },
    of: (found) => share(found.get('auto is right')),
  },
];

/** Rows of all targets: reached or not, or not measured. */
export function targetRows(found) {
  return targets.map(({ name, what, limit, target, goal, unit, of }) => {
    const value = of(found);
    const wanted = `target ${target}${goal === target ? '' : `, goal ${goal}`}`;
    if (value === undefined)
      return { section: name, row: { what, outcome: 'not measured', figures: wanted } };
    const isWithin = (bound) => (limit === 'least' ? value >= bound : value <= bound);
    const verdict = isWithin(goal) ? 'reached' : isWithin(target) ? 'target reached' : 'not reached';
    const figures = `${Number(value.toPrecision(4))} ${unit}, ${wanted}: ${verdict}`;
    return { section: name, row: { what, outcome: 'measured', figures } };
  });
}

function ratio(name, preset, bounds) {
  return {
    ...{
      name,
      what: `${preset} ReLoRA to the merged graph in PyTorch`,
      limit: 'least',
      unit: 'x',
      ...bounds,
    },
    of: (found) => found.get(`${preset} ReLoRA to PyTorch`),
  };
}

function speed(name, preset, what, bounds) {
  return {
    ...{ name, what: `${preset} ${what}`, limit: 'least', unit: 'k tokens/s', ...bounds },
    of: (found) => quotient(new Map([...found, ['thousand', 1000]]), `${preset} ${what}`, 'thousand'),
  };
}

function most(name, what, { target, unit }) {
  return { name, what, limit: 'most', target, goal: target, unit, of: (found) => found.get(what) };
}

function quotient(found, one, other) {
  const [upper, lower] = [found.get(one), found.get(other)];
  return upper === undefined || lower === undefined ? undefined : upper / lower;
}

function share(answers) {
  return answers && (100 * answers.filter(Boolean).length) / answers.length;
}
