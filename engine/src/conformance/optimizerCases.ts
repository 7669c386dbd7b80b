import type { Moment } from '../device/device.js';
import { encode, zeroSigned } from '../device/momentCodes.js';
import type { Bench } from './bench.js';
import type { Case } from './cases.js';
import { seeded } from './seeded.js';

type Kind = 'float32' | 'coded';

/** Updates by matrix optimizers. */
export const optimizerCases: Case[] = [
  muonCase('small', 7, 5, 'float32'),
  muonCase('wide', 37, 70, 'float32'),
  muonCase('tall', 150, 40, 'coded'),
  // Too large for a single thread, and more rows than one task of a symmetric product handles.
  muonCase('shared', 260, 300, 'float32'),
  loraMuonCase('small', [9, 6, 3], 'float32', 'both'),
  loraMuonCase('larger', [40, 70, 8], 'float32', 'both'),
  loraMuonCase('of codes', [70, 130, 16], 'coded', 'both'),
  loraMuonCase('of B alone', [40, 70, 8], 'float32', 'bOnly'),
  loraMuonCase('at B = 0', [40, 70, 8], 'float32', 'zero'),
  apolloMiniCase('wide', 19, 50),
  apolloMiniCase('tall', 700, 21),
];

const step = { learningRate: 0.01, momentum: 0.9, weightDecay: 0.1 };

function muonCase(name: string, rows: number, columns: number, kind: Kind): Case {
  return {
    call: 'muon',
    name: `muon ${name}`,
    ways: [kind],
    async run(bench) {
      const length = rows * columns;
      const members = ['one', 'other'].map((matrix) => memberOf(bench, matrix, length, kind));
      await withClip(bench, members, (clip) =>
        bench.device.muon({ shape: { rows, columns }, members }, { ...step, clip }),
      );
      return await bench.results({});
    },
  };
}

/** 'zero': as after a restart, where B and A's gradient are zero. */
function loraMuonCase(
  name: string,
  [inFeatures, outFeatures, rank]: [number, number, number],
  kind: Kind,
  factors: 'both' | 'bOnly' | 'zero',
): Case {
  return {
    call: 'loraMuon',
    name: `loraMuon ${name}`,
    ways: [kind],
    async run(bench) {
      const frozen = (matrix: string, length: number) => ({
        parameter: bench.changes(matrix, bench.input(matrix, length)),
        gradient: null,
        first: null,
      });
      const members = ['one', 'other'].map((layer) => {
        const a = `${layer} a`;
        const b = memberOf(bench, `${layer} b`, rank * outFeatures, kind);
        if (factors === 'zero') bench.device.zero(b.parameter);
        return {
          a: factors === 'bOnly' ? frozen(a, inFeatures * rank) : memberOf(bench, a, inFeatures * rank, kind),
          b,
        };
      });
      const shape = { inFeatures, outFeatures, rank };
      const trained = members.flatMap(({ a, b }) => [a, b]).filter(({ gradient }) => gradient !== null);
      await withClip(bench, trained, (clip) =>
        bench.device.loraMuon({ shape, members }, { ...step, scale: 0.5, clip }),
      );
      return await bench.results({});
    },
  };
}

/** Two updates, so that the limit on the step's growth has a previous step to refer to. */
function apolloMiniCase(name: string, rows: number, columns: number): Case {
  return {
    call: 'apolloMini',
    name: `apolloMini ${name}`,
    ways: [],
    async run(bench) {
      const [less, more] = [Math.min(rows, columns), Math.max(rows, columns)];
      const members = ['one', 'other'].map((matrix) => ({
        parameter: bench.changes(matrix, bench.input(matrix, rows * columns)),
        gradient: bench.input(`${matrix} gradient`, rows * columns),
        projection: bench.input(`${matrix} projection`, less),
        first: zeros(bench, `${matrix} first`, more),
        second: zeros(bench, `${matrix} second`, more),
        norm: zeros(bench, `${matrix} norm`, 1),
      }));
      const { device } = bench;
      for (const count of [1, 2]) {
        const options = { learningRate: 0.01, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weightDecay: 0.1 };
        const corrections = { correction1: 1 - 0.9 ** count, correction2: 1 - 0.99 ** count };
        await withClip(bench, members, (clip) =>
          device.apolloMini(
            { shape: { rows, columns }, members },
            { ...options, ...corrections, clip: count === 1 ? clip : { ...clip, normMax: 3 * clip.normMax } },
          ),
        );
      }
      return await bench.results({});
    },
  };
}

function memberOf(bench: Bench, name: string, length: number, kind: Kind) {
  return {
    parameter: bench.changes(name, bench.input(name, length)),
    gradient: bench.input(`${name} gradient`, length),
    first: firstOf(bench, `${name} first`, seeded(length, `${name} first`, 0.3), kind),
  };
}

function firstOf(bench: Bench, name: string, values: Float32Array, kind: Kind): Moment {
  if (kind === 'float32') return bench.changes(name, bench.given(name, values));
  const coded = zeroSigned(values.length);
  encode(coded, values);
  const codes = bench.hold(bench.device.alloc(values.length, 'int8'));
  bench.device.upload(codes, coded.codes);
  return {
    codes: bench.changes(`${name} codes`, codes),
    scales: bench.changes(`${name} scales`, bench.given(`${name} scales`, coded.scales)),
  };
}

function zeros(bench: Bench, name: string, length: number) {
  return bench.changes(name, bench.given(name, new Float32Array(length)));
}

/** Clipped to a third of the norm. */
async function withClip(
  { device }: Bench,
  members: readonly { gradient: Parameters<typeof device.release>[0] }[],
  call: (clip: { result: ReturnType<typeof device.newResult>; normMax: number }) => void,
): Promise<void> {
  const result = device.newResult(0);
  device.clearResult(result);
  device.sumSquares(
    result,
    members.map(({ gradient }) => gradient!),
  );
  const normMax = Math.sqrt((await device.readResult(result)).squaredNorm) / 3;
  call({ result, normMax });
  device.releaseResult(result);
}
