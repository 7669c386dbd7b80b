import type * as contract from './contract.js';

interface Kinds {
  state: contract.StateEvent;
  step: contract.StepEvent;
  evaluation: contract.EvaluationEvent;
  namedEvaluation: contract.NamedEvaluation;
  restart: contract.RestartEvent;
  plan: contract.PlanEvent;
  update: contract.UpdateEvent;
  stop: contract.StopEvent;
  documents: contract.DocumentsEvent;
  checkpoint: contract.CheckpointEvent;
  artifact: contract.ArtifactEvent;
  sample: contract.SampleEvent;
  warning: contract.WarningEvent;
  storeChanged: StoreChanged;
}

/**
 * Not an entry of a journal: the server's store is no longer the one that the last event came from, as after a restore from a backup or a
 * failover of its database. The events of the job follow from the first one, as the present store has them. `sequence` is 0.
 */
export interface StoreChanged {
  message: string;
}

interface Entry {
  /** 1, 2, 3 … without gaps within the job. */
  sequence: number;
  /**
   * First of the sequence numbers that this event stands for: its own, except for the step event of a span (`step.span`), into which old
   * ones are folded.
   */
  firstSequence: number;
  time: Date;
  /** Whether it is the last event that the job will ever have. */
  final: boolean;
  /** Execution that caused it, from 1; 0 outside an execution. */
  attempt: number;
  /** The store that the sequence number belongs to; pass it as WatchOptions.storeId to continue a watch later. Empty with an old server. */
  storeId: string;
}

/** An entry of a job's journal: `kind` names its kind, and the field of that name has its content. */
export type JobEvent = {
  [Kind in keyof Kinds]: Entry & { kind: Kind } & { [Key in Kind]: Kinds[Kind] };
}[keyof Kinds];

const kinds = [
  'state',
  'step',
  'evaluation',
  'namedEvaluation',
  'restart',
  'plan',
  'update',
  'stop',
  'documents',
  'checkpoint',
  'artifact',
  'sample',
  'warning',
] as const satisfies Exclude<keyof Kinds, 'storeChanged'>[];

/** Null for heartbeats, and for kinds of newer servers. */
export function fromEventMessage(message: contract.JobEvent, storeId: string): JobEvent | null {
  for (const kind of kinds) {
    const body = message[kind];
    if (body === undefined) continue;
    const { sequence, final, attempt } = message;
    const firstSequence = message.firstSequence || sequence; // servers from before spans do not set it
    const event: object = {
      sequence,
      firstSequence,
      final,
      attempt,
      storeId,
      time: message.time ?? new Date(0),
      kind,
      [kind]: body,
    };
    return event as JobEvent; // the table of kinds guarantees the type
  }
  return null;
}

/** The event of a watch that begins again in another store. */
export function storeChanged(message: string): JobEvent {
  const entry = { sequence: 0, firstSequence: 0, time: new Date(), final: false, attempt: 0, storeId: '' };
  return { ...entry, kind: 'storeChanged', storeChanged: { message } };
}
