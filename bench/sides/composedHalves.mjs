// The halves of a block, forward and backward, kernel by kernel, on a device that replaces the products with frozen bases. `cpu` is a
// device `native` with its own `linearForward` and `linearBackward`; its layers have no dropout and constant scales.

export function composedAttentionForward(cpu, y, x, half) {
  const { batch, time, heads, kvHeads } = half.shape;
  const rows = batch * time;
  const { normed, rstd } = norm(cpu, x, half, rows);
  const q = through(cpu, half.q, normed, rows);
  const k = through(cpu, half.k, normed, rows);
  const v = through(cpu, half.v, normed, rows);
  const [turnedQ, turnedK] = [
    turn(cpu, q.values, half, heads, false),
    turn(cpu, k.values, half, kvHeads, false),
  ];
  const mixed = cpu.take(rows * half.o.inFeatures);
  const logSumExp = cpu.take(batch * heads * time);
  const given = { q: turnedQ, k: turnedK, v: v.values };
  cpu.addon.attentionForward(mixed, logSumExp, given, attentionShape(half), cpu.precision);
  const o = through(cpu, half.o, mixed, rows);
  if (y !== null) residual(cpu, cpu.floats(y), cpu.floats(x), o.values);
  cpu.give(o.values);
  return {
    arrays: [normed, rstd, turnedQ, turnedK, v.values, mixed, logSumExp],
    xa: { q: q.xa, k: k.xa, v: v.xa, o: o.xa },
  };
}

export function composedAttentionBackward(cpu, gradients, dyBuffer, x, half, { arrays, xa }) {
  const [normed, rstd, q, k, v, mixed, logSumExp] = arrays;
  const { batch, time, heads, kvHeads } = half.shape;
  const rows = batch * time;
  const dy = cpu.floats(dyBuffer);
  const [dmixed, dn] = [cpu.take(mixed.length), cpu.take(normed.length)];
  back(cpu, dmixed, false, gradients.o, dy, mixed, rows, half.o, xa.o);
  const [dq, dk, dv] = [q, k, v].map(({ length }) => cpu.take(length));
  const shape = attentionShape(half);
  cpu.addon.attentionBackward(
    { q: dq, k: dk, v: dv },
    dmixed,
    { q, k, v },
    mixed,
    logSumExp,
    shape,
    cpu.precision,
  );
  const [turnedQ, turnedK] = [turn(cpu, dq, half, heads, true), turn(cpu, dk, half, kvHeads, true)];
  back(cpu, dn, false, gradients.v, dv, normed, rows, half.v, xa.v);
  back(cpu, dn, true, gradients.k, turnedK, normed, rows, half.k, xa.k);
  back(cpu, dn, true, gradients.q, turnedQ, normed, rows, half.q, xa.q);
  normBackward(cpu, gradients, dn, dy, x, half, rstd, rows);
  for (const array of [...arrays, dmixed, dn, dv, turnedQ, turnedK]) cpu.give(array);
}

export function composedMlpForward(cpu, y, x, half) {
  const rows = half.shape.batch * half.shape.time;
  const { normed, rstd } = norm(cpu, x, half, rows);
  const gate = through(cpu, half.gate, normed, rows);
  const up = through(cpu, half.up, normed, rows);
  const inner = cpu.take(gate.values.length);
  cpu.addon.swigluForward(inner, gate.values, up.values);
  const down = through(cpu, half.down, inner, rows);
  if (y !== null) residual(cpu, cpu.floats(y), cpu.floats(x), down.values);
  cpu.give(down.values);
  return {
    arrays: [normed, rstd, gate.values, up.values, inner],
    xa: { gate: gate.xa, up: up.xa, down: down.xa },
  };
}

export function composedMlpBackward(cpu, gradients, dyBuffer, x, half, { arrays, xa }) {
  const [normed, rstd, gate, up, inner] = arrays;
  const rows = half.shape.batch * half.shape.time;
  const dy = cpu.floats(dyBuffer);
  const [dinner, dgate, dup] = [inner, inner, inner].map(({ length }) => cpu.take(length));
  const dn = cpu.take(normed.length);
  back(cpu, dinner, false, gradients.down, dy, inner, rows, half.down, xa.down);
  cpu.addon.swigluBackward(dgate, dup, dinner, gate, up);
  back(cpu, dn, false, gradients.up, dup, normed, rows, half.up, xa.up);
  back(cpu, dn, true, gradients.gate, dgate, normed, rows, half.gate, xa.gate);
  normBackward(cpu, gradients, dn, dy, x, half, rstd, rows);
  for (const array of [...arrays, dinner, dgate, dup, dn]) cpu.give(array);
}

export function releaseComposed(cpu, { arrays, xa }) {
  for (const array of [...arrays, ...Object.values(xa)]) if (array !== null) cpu.give(array);
}

function frozen(cpu, { base, adapter }) {
  const values = adapter && { ...adapter, a: cpu.floats(adapter.a), b: cpu.floats(adapter.b) };
  return { base: cpu.panels(base), adapter: values };
}

function through(cpu, layer, x, rows) {
  const values = cpu.take(rows * layer.outFeatures);
  const xa = layer.adapter && cpu.take(rows * layer.adapter.rank);
  cpu.addon.linearForward(values, xa, x, frozen(cpu, layer), rows);
  if (layer.bias !== null) {
    const bias = cpu.floats(layer.bias);
    for (let i = 0; i < values.length; i++) values[i] += bias[i % bias.length];
  }
  return { values, xa };
}

/** dx is overwritten, or added to with `adds`. Takes ownership of xa. */
function back(cpu, dx, adds, gradients, dy, x, rows, layer, xa) {
  const to = adds ? cpu.take(dx.length) : dx;
  const values = (buffer) => buffer && cpu.floats(buffer);
  const { inFeatures, outFeatures } = layer;
  if (gradients.weight !== null) {
    const shape = { batch: 1, m: inFeatures, n: outFeatures, k: rows, transposeA: true, transposeB: false };
    cpu.addon.matmul(cpu.floats(gradients.weight), x, dy, shape, cpu.precision);
  }
  if (gradients.bias !== null) {
    const sums = new Float64Array(outFeatures);
    for (let i = 0; i < dy.length; i++) sums[i % outFeatures] += dy[i];
    cpu.floats(gradients.bias).set(sums);
  }
  cpu.addon.linearBackward(to, values(gradients.a), values(gradients.b), dy, x, xa, frozen(cpu, layer), rows);
  if (adds) {
    cpu.addon.addInPlace(dx, to);
    cpu.give(to);
  }
  if (xa !== null) cpu.give(xa);
}

function norm(cpu, x, { gain, epsilon, shape }, rows) {
  const [normed, rstd] = [cpu.take(x.length), cpu.take(rows)];
  cpu.addon.rmsNormForward(normed, rstd, cpu.floats(x), cpu.floats(gain), rows, shape.hidden, epsilon);
  return { normed, rstd };
}

function normBackward(cpu, { dx, gain: dgain }, dn, dy, x, { gain, shape }, rstd, rows) {
  const through = cpu.take(dn.length);
  const [input, gains] = [cpu.floats(x), cpu.floats(gain)];
  cpu.addon.rmsNormBackward(through, cpu.floats(dgain), dn, input, gains, rstd, rows, shape.hidden);
  residual(cpu, cpu.floats(dx), dy, through);
  cpu.give(through);
}

function residual(cpu, sum, x, y) {
  sum.set(x);
  cpu.addon.addInPlace(sum, y);
}

/** Takes ownership of the rotated values. */
function turn(cpu, from, { shape: { batch, time, headDim }, angles }, heads, inverse) {
  if (angles === null) return from;
  const to = cpu.take(from.length);
  const table = { cos: cpu.floats(angles.cos), sin: cpu.floats(angles.sin) };
  cpu.addon.rotary(to, from, table, { batch, time, heads, headDim, firstPosition: 0 }, inverse);
  cpu.give(from);
  return to;
}

function attentionShape({ shape: { batch, time, heads, kvHeads, headDim } }) {
  return { batch, time, heads, kvHeads, headDim, scale: 1 / Math.sqrt(headDim), documents: null };
}
