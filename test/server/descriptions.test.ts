import { layerRank, plannedGraph, restartModule, trainingEvents } from '@relora/engine/plan';
import { describe, expect, it } from 'vitest';
import { exportResult, sealedArtifact } from '../../server/dist/artifacts/artifact.js';
import { execution } from '../../server/dist/jobs/job.js';
import { fieldsOf } from './contractText.js';

const sorted = (names: Iterable<string>): string[] => [...names].sort();

describe('what is described once', () => {
  /** Kept in the journal and never sent: where a checkpoint lies is nobody's concern. */
  const internal = ['path', 'manifestSha256'];
  const messages: [message: string, table: object][] = [
    ['StepEvent', trainingEvents.step],
    ['EvaluationEvent', trainingEvents.evaluation],
    ['RestartEvent', trainingEvents.restart],
    ['RestartModule', restartModule],
    ['LayerRank', layerRank],
    ['PlanEvent', trainingEvents.plan],
    ['PlannedGraph', plannedGraph],
    ['CheckpointEvent', trainingEvents.checkpoint],
    ['SampleEvent', trainingEvents.sample],
    ['WarningEvent', trainingEvents.warning],
    ['Execution', execution],
    ['ExecutionGraph', plannedGraph],
  ];

  it.each(messages)('%s has the fields of its table, and no other', (message, table) => {
    const described = Object.keys(table).filter((key) => !internal.includes(key));
    expect(sorted(fieldsOf(message).keys())).toEqual(sorted(described));
  });

  it('every event of a trainer is an event of the contract', () => {
    const ofServer = ['sequence', 'time', 'final', 'attempt', 'state', 'artifact', 'heartbeat'];
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
