import { padded, widthOf, type CardRun } from './cardRun.js';
import { headSize, linearShapes } from './parameters.js';
import type { TargetModule } from './runSpec.js';

/**
 * Bytes of float32 logits, bytes of their gradients as products read them, and elements of dx that are computed at once
 * (device/cuda/head.ts).
 */
const [logitBytes, gradientBytes, tileElements] = [2 ** 25, 2 ** 29, 2 ** 22];

const firstOf = { attention: ['q_proj', 'k_proj', 'v_proj'], mlp: ['gate_proj', 'up_proj'] } as const;
const lastOf = { attention: 'o_proj', mlp: 'down_proj' } as const;

/** What a step of one micro-batch keeps for its backward pass, and the temporaries of its most demanding moment. */
export function cardStepMemory(run: CardRun): { activations: number; scratch: number } {
  const { spec, graphs, element, isJoined, isE4m3, rankIn } = run;
  const { adapter, batch, model, recomputation } = spec;
  const shapes = linearShapes(model);
  const sequences = Math.min(batch.microBatchSequenceCount, batch.sequenceCount);
  const rows = sequences * batch.sequenceLength;
  const { hiddenSize: hidden, intermediateSize: inner, numHiddenLayers: layers, vocabSize } = model;
  const { numAttentionHeads: heads } = model;
  const queries = shapes.q_proj.outFeatures;
  const isTiled = element === 2 && headSize(model) % 8 === 0;
  const head = isTiled ? 2 : 4;
  // Queries and keys before the norms of their heads.
  const headNorms = model.qkNorm ? padded(queries) + padded(shapes.k_proj.outFeatures) : 0;
  const sum = (modules: readonly TargetModule[], bytes: (name: TargetModule) => number) =>
    modules.reduce((total, name) => total + bytes(name), 0);
  const width = (half: 'attention' | 'mlp') =>
    sum(firstOf[half], (name) => widthOf(shapes[name].outFeatures));
  const hasPath = (name: TargetModule) => rankIn(name) > 0 && !isE4m3 && graphs[name] === 'separate';

  // Float32 inputs are kept where they are; otherwise each half keeps a rounded copy of its input.
  const stream = 4 * rows * hidden;
  const input = element * rows * hidden;
  // What an adapter's path keeps: x A, and the input after dropout.
  const path = (name: TargetModule) => {
    if (!hasPath(name)) return 0;
    const { inFeatures } = shapes[name];
    const dropped = adapter!.dropout > 0 ? rows * (4 * inFeatures + element * padded(inFeatures)) : 0;
    return element * rows * padded(rankIn(name)) + dropped;
  };
  const states = {
    attention:
      input +
      rows * (head * (width('attention') + padded(queries) + headNorms) + 4 * heads) +
      sum([...firstOf.attention, lastOf.attention], path),
    mlp: input + rows * element * width('mlp') + sum([...firstOf.mlp, lastOf.mlp], path),
  };
  const isRecomputed = recomputation === 'blocks';
  const kept = isRecomputed ? 2 * layers * stream : layers * (states.attention + states.mlp);

  const chunk = (most: number) => Math.min(rows, Math.max(128, Math.floor(most / 128) * 128));
  const gradientRows = chunk(Math.min(gradientBytes / (element * vocabSize), tileElements / hidden));
  const logitRows = Math.min(gradientRows, chunk(logitBytes / (4 * vocabSize)));
  const atHead =
    2 * stream +
    input +
    (element === 2 ? 2 * rows * padded(hidden) : 0) +
    padded(vocabSize) * (4 * logitRows + element * gradientRows);

  // W' of layers, computed just before use; codes of the input; x A and dy Bᵀ.
  const isMade = (name: TargetModule) => element === 2 && rankIn(name) > 0 && graphs[name] !== 'separate';
  const made = (modules: readonly TargetModule[]) =>
    modules.some(isMade)
      ? sum(modules, (name) => 2 * shapes[name].inFeatures * widthOf(shapes[name].outFeatures))
      : 0;
  const thin = (name: TargetModule) => (rankIn(name) === 0 ? 0 : 2 * element * rows * padded(rankIn(name)));
  const codes = isE4m3 ? rows * (hidden + inner) : 0;
  // Adapter paths are accumulated in float32.
  const paths = (modules: readonly TargetModule[]) =>
    sum(modules, (name) =>
      hasPath(name) ? 4 * rows * Math.max(shapes[name].outFeatures, shapes[name].inFeatures) : 0,
    );
  const normed = element * rows * padded(hidden);
  const rounded = element === 2 ? 2 * rows * padded(hidden) : 0;
  const between = {
    attention: head * rows * padded(queries),
    mlp: element * rows * (isJoined ? widthOf(inner) : padded(inner)),
  };
  // SwiGLU's gradients overwrite gate and up.
  const dmade = { attention: head * rows * width('attention'), mlp: 0 };
  const backward = (half: 'attention' | 'mlp') => {
    const [first, last] = [firstOf[half], lastOf[half]];
    const dn = isJoined ? normed : stream;
    const below = between[half] + Math.max(made([last]), dmade[half] + (half === 'mlp' ? between.mlp : 0));
    const above = dmade[half] + dn + Math.max(made(first), normed + rounded);
    const widened =
      isTiled || element === 4 || half === 'mlp' ? 0 : rows * (2 * width('attention') + 2 * padded(queries));
    return (
      2 * stream +
      rounded +
      Math.max(below, above) +
      Math.max(...[...first, last].map(thin)) * first.length +
      paths([...first, last]) +
      codes +
      widened
    );
  };
  const again = (half: 'attention' | 'mlp') => (isRecomputed ? states[half] : 0);
  const moments = [
    atHead,
    again('mlp') + backward('mlp'),
    // By then the last half has freed its state.
    again('attention') + backward('attention') - (isRecomputed ? stream : states.mlp),
  ];
  return { activations: kept, scratch: Math.max(...moments) };
}
