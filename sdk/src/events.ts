import type * as contract from './contract.js';

interface Kinds {
  state: contract.StateEvent;
  step: contract.StepEvent;
  evaluation: contract.EvaluationEvent;
  restart: contract.RestartEvent;
  plan: contract.PlanEvent;
  update: contract.UpdateEvent;
  stop: contract.StopEvent;
  checkpoint: contract.CheckpointEvent;
  artifact: contract.ArtifactEvent;
  sample: contract.SampleEvent;
  warning: contract.WarningEvent;
}

interface Entry {
  /** 1, 2, 3 … without gaps within the job. */
  sequence: number;
  /** Of the first event that this one stands for: its own, but for the step event of a span (`step.span`), to which old ones are folded. */
  firstSequence: number;
  time: Date;
  /** The last event that the job will ever have. */
  final: boolean;
  /** Execution that caused it, from 1; 0 outside of one. */
  attempt: number;
}

/** An entry of a job's journal: `kind` says which, and the field of that name holds it. */
export type JobEvent = {
  [Kind in keyof Kinds]: Entry & { kind: Kind } & { [Key in Kind]: Kinds[Kind] };
}[keyof Kinds];

const kinds = [
  'state',
  'step',
  'evaluation',
  'restart',
  'plan',
  'update',
  'stop',
  'checkpoint',
  'artifact',
  'sample',
  'warning',
] as const satisfies (keyof Kinds)[];

/** Null for heartbeats, and for kinds that a newer server may have. */
export function fromEventMessage(message: contract.JobEvent): JobEvent | null {
  for (const kind of kinds) {
    const body = message[kind];
    if (body === undefined) continue;
    const { sequence, final, attempt } = message;
    const firstSequence = message.firstSequence || sequence; // servers before spans do not say
    const event: object = {
      sequence,
      firstSequence,
      final,
      attempt,
      time: message.time ?? new Date(0),
      kind,
      [kind]: body,
    };
    return event as JobEvent; // the table of kinds holds what the type says
  }
  return null;
}
