import { margin, round, text, toneOf, width } from './svg.mjs';

const rowHeight = 24;
const barHeight = 15;
const labelWidth = 290;
const valueWidth = 90;

/** Horizontal bars { label, value, shown, tone } from zero; `shown` is the value as text, `end` the value of a full-length bar. */
export function barPanel({ title, bars, end = Math.max(...bars.map(({ value }) => value)) }) {
  const barWidth = width - 2 * margin - labelWidth - valueWidth;
  const rows = bars.map(({ label, value, shown, tone }, index) => {
    const y = index * rowHeight;
    const length = (barWidth * value) / end;
    return `${text(labelWidth - 10, y + 13, label, '', 'end')}
<rect x="${labelWidth}" y="${y + 1}" width="${round(Math.max(1, length))}" height="${barHeight}" rx="2" class="${toneOf(tone)}"/>
${text(labelWidth + length + 8, y + 13, shown, 'faint')}`;
  });
  return { title, height: bars.length * rowHeight, content: rows.join('\n') };
}
