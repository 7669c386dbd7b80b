import * as plan from '@relora/engine/plan';
import {
  datasetEvaluation,
  bestEvaluation,
  choiceEvaluation,
  documentLoss,
  exportDifference,
  layerRank,
  plannedGraph,
  restartModule,
  spread,
  stepSpan,
  trainingEvents,
  type Settings,
} from '@relora/engine/plan';
import { describe, expect, it } from 'vitest';
import { exportResult, sealedArtifact } from '../../server/dist/artifacts/artifact.js';
import { capitals } from '../../server/dist/api/enums.js';
import { execution, executionDataset } from '../../server/dist/jobs/job.js';
import { fieldsOf } from './contractText.js';

const sorted = (names: Iterable<string>): string[] => [...names].sort();

describe('what a trainer reports', () => {
  /** In the journal but never sent: clients need not know where a checkpoint is stored. */
  const internal = ['path', 'manifestSha256'];
  const messages: [message: string, table: object][] = [
    ['StepEvent', trainingEvents.step],
    ['StepSpan', stepSpan],
    ['Spread', spread],
    ['EvaluationEvent', trainingEvents.evaluation],
    ['DatasetEvaluation', datasetEvaluation],
    ['ChoiceEvaluation', choiceEvaluation],
    ['NamedEvaluation', trainingEvents.namedEvaluation],
    ['RestartEvent', trainingEvents.restart],
    ['RestartModule', restartModule],
    ['LayerRank', layerRank],
    ['PlanEvent', trainingEvents.plan],
    ['PlannedGraph', plannedGraph],
    ['CheckpointEvent', trainingEvents.checkpoint],
    ['BestEvaluation', bestEvaluation],
    ['UpdateEvent', trainingEvents.update],
    ['StopEvent', trainingEvents.stop],
    ['DocumentsEvent', trainingEvents.documents],
    ['DocumentLoss', documentLoss],
    ['SampleEvent', trainingEvents.sample],
    ['WarningEvent', trainingEvents.warning],
    ['Execution', execution],
    ['ExecutionGraph', plannedGraph],
    ['ExecutionDataset', executionDataset],
    ['ExportDifference', exportDifference],
  ];

  it.each(messages)('%s has the fields of its table, and no other', (message, table) => {
    const described = Object.keys(table).filter((key) => !internal.includes(key));
    expect(sorted(fieldsOf(message).keys())).toEqual(sorted(described));
  });

  it('every event of a trainer is an event of the contract', () => {
    const ofServer = [
      'sequence',
      'firstSequence',
      'time',
      'final',
      'attempt',
      'state',
      'artifact',
      'heartbeat',
    ];
    const ofTrainer = [...fieldsOf('JobEvent').keys()].filter((name) => !ofServer.includes(name));
    expect(sorted(ofTrainer)).toEqual(sorted(Object.keys(trainingEvents)));
  });

  it('an artifact shows what its trainer or export reported', () => {
    const shown = [...fieldsOf('Artifact').keys(), 'id'];
    expect(Object.keys({ ...sealedArtifact, ...exportResult }).filter((key) => !shown.includes(key))).toEqual(
      [],
    );
  });
});

describe('a setting of a job', () => {
  /** With fields that are not plain settings: their allowed values depend on more than a table can express. */
  const messages: [message: string, table: Settings, others: string[]][] = [
    [
      'JobSpec',
      plan.runSettings,
      [
        ...[
          'model',
          'dataset',
          'mixture',
          'stepCount',
          'tokenCount',
          'omittedSteps',
          'skippedSteps',
          'streams',
          'acceptedDevices',
          'recipe',
          'warmStart',
          'adapter',
        ],
        ...[
          'learningRate',
          'optimizer',
          'batch',
          'evaluation',
          'evaluations',
          'checkpoint',
          'omittedDocuments',
        ],
        ...['sample', 'export', 'stop'],
      ],
    ],
    ['StreamVersions', plan.streamSettings, []],
    ['LlamaConfig', plan.modelSettings, ['ropeScaling']],
    ['WarmStartSpec', plan.warmStartSettings, []],
    ['AdapterSpec', plan.adapterSettings, ['allowShortLastCycle', 'targetModules', 'moduleRanks']],
    ['LearningRateSpec', plan.learningRateSettings, []],
    ['OptimizerSpec', plan.optimizerSettings, []],
    ['BatchSpec', plan.batchSettings, []],
    ['EvaluationSpec', plan.evaluationSettings, []],
    ['NamedEvaluationSpec', plan.namedEvaluationSettings, ['name', 'dataset', 'questions']],
    ['CheckpointSpec', plan.checkpointSettings, []],
    ['StopSpec', plan.stopSettings, []],
    ['SampleSpec', plan.sampleSettings, []],
    ['ExportSpec', plan.exportSettings, ['formats', 'ggufWeightType']],
  ];

  it.each(messages)('%s has the fields of its table, and no other', (message, table, others) => {
    expect(sorted(fieldsOf(message).keys())).toEqual(sorted([...Object.keys(table), ...others]));
  });

  it.each(messages)('%s names the defaults of its table', (message, table) => {
    const required = ['hiddenSize', 'intermediateSize', 'numHiddenLayers', 'numAttentionHeads'];
    for (const [key, setting] of Object.entries(table)) {
      if (typeof setting.default === 'function' || setting.type === 'text' || required.includes(key))
        continue;
      const named = /\bdefault ([^\s,;]+?)[.,;]?(?:\s|$)/i.exec(fieldsOf(message).get(key)!)?.[1];
      const isName = setting.type === 'choice' && setting.enumName !== null;
      const expected = isName ? capitals(setting.default as string) : setting.default;
      expect(typeof expected === 'number' ? Number(named) : named, key).toBe(
        typeof expected === 'number' ? expected : String(expected),
      );
    }
  });
});
