import * as contract from '@relora/sdk/contract';
import { quote } from '../errors.js';
import { nearest } from '../nearest.js';
import type { FieldChecks } from './fieldChecks.js';
import { putOver } from './forkSpec.js';

/** Named defaults of a job (docs/relora.md §Recipes has their sources). What a client sets takes precedence. */
interface Recipe {
  summary: string;
  /** Kinds of jobs that it applies to; null: all. */
  kinds: readonly contract.JobKind[] | null;
  /** Default of alpha / rank; null: that of AdapterSpec. */
  alphaOverRank: number | null;
  /** `stepCount` is that of the main phase. */
  defaults: (stepCount: number) => contract.DeepPartial<contract.JobSpec>;
}

const { RELORA, LORA } = contract.JobKind;

export const recipes: Readonly<Record<string, Recipe>> = {
  paper: {
    summary: 'ReLoRA as its authors trained it; the default',
    kinds: null,
    alphaOverRank: null,
    defaults: () => ({}),
  },
  'gradient-svd': {
    summary: 'Pre-training without a warm start: A from the gradient of each cycle, only B trained',
    kinds: [RELORA, LORA],
    alphaOverRank: 1,
    defaults: () => ({
      warmStart: { stepCount: 0 },
      adapter: {
        initialisation: contract.Initialisation.GRADIENT_SVD,
        trainedFactors: contract.TrainedFactors.B_ONLY,
      },
    }),
  },
  'muon-warm': {
    summary: 'Pre-training with a warm start by Muon, at higher rates; measured on one small model',
    kinds: [RELORA],
    alphaOverRank: 1,
    defaults: (stepCount) => ({
      warmStart: {
        stepCount: Math.ceil(stepCount / 4),
        learningRate: 3e-3,
        optimizer: contract.FullRankOptimizer.MUON,
      },
      learningRate: { peak: 3e-3 },
    }),
  },
  'chain-of-lora': {
    summary: 'Fine-tuning by three adapters of low rank, one after the other',
    kinds: [RELORA],
    alphaOverRank: 2,
    defaults: (stepCount) => ({
      warmStart: { stepCount: 0 },
      learningRate: { peak: 2e-4 },
      adapter: {
        rank: 8,
        targetModules: [contract.TargetModule.Q_PROJ, contract.TargetModule.V_PROJ],
        cycleStepCount: Math.ceil(stepCount / 3),
        allowShortLastCycle: true,
      },
    }),
  },
};

/** Name of a job's recipe; `paper` if there is none or it is invalid. */
export function parseRecipe(checks: FieldChecks, { recipe, kind }: contract.JobSpec): string {
  if (recipe === '') return 'paper';
  const found = Object.hasOwn(recipes, recipe) ? recipes[recipe] : undefined;
  const names = Object.keys(recipes);
  if (found === undefined) {
    const expected = `one of ${names.join(', ')} (did you mean ${nearest(recipe, names)}?)`;
    checks.add('spec.recipe', expected, quote(recipe));
    return 'paper';
  }
  const known = kind === contract.JobKind.UNSPECIFIED ? RELORA : kind;
  if (found.kinds === null || found.kinds.includes(known)) return recipe;
  const kinds = found.kinds.map((one) => one.replace('JOB_KIND_', '')).join(' or ');
  checks.add(
    'spec.recipe',
    `a recipe for ${known.replace('JOB_KIND_', '')}; ${recipe} is for ${kinds}`,
    recipe,
  );
  return 'paper';
}

/** The specification with the recipe's defaults for unset fields. */
export function withRecipe(recipe: string, spec: contract.JobSpec, stepCount: number): contract.JobSpec {
  return { ...spec, ...(putOver(recipes[recipe]!.defaults(stepCount), spec) as Partial<contract.JobSpec>) };
}
