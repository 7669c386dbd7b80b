/** Dashes in addition to colors distinguish curves where colors are not seen or not printed. */
const dashes = ['none', '7 3', '2 3', '9 3 2 3', '4 2', '12 4', '1 4', '7 3 2 3 2 3'];
const lightTones = ['#2a6fdb', '#c2620f', '#1f8f4e', '#b83280', '#7a52cc', '#0e7c86', '#a3352c', '#5d6670'];
const darkTones = ['#589df6', '#e8934a', '#4cc27c', '#ee7ab9', '#b08cf5', '#3fb6c2', '#ef8279', '#9aa4af'];

const tonesOf = (tones: readonly string[]) =>
  tones
    .map((color, index) => `.tone${index}{stroke:${color};fill:${color};stroke-dasharray:${dashes[index]}}`)
    .join('\n');

const style = `
:root{color-scheme:light dark;--page:#fff;--text:#1f2328;--faint:#59636e;--rule:#dde3e9;--note:#fff6e5}
body{margin:0 auto;max-width:1180px;padding:28px 24px 48px;background:var(--page);color:var(--text);
font:15px/1.5 system-ui,'Segoe UI','DejaVu Sans',sans-serif}
h1{font-size:24px;font-weight:600;margin:0}
h2{font-size:17px;font-weight:600;margin:36px 0 10px}
p{margin:4px 0 12px}.faint{color:var(--faint)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));gap:22px 30px}
figure{margin:0;break-inside:avoid}figcaption{font-weight:600;font-size:14px;margin:0 0 4px 4px}
svg{display:block;width:100%;height:auto}svg text{font-size:12px;fill:var(--faint)}
.rule{stroke:var(--rule);fill:none}.line{fill:none!important;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
circle{stroke:none}
.legend{display:flex;flex-wrap:wrap;gap:4px 22px;list-style:none;margin:18px 0 20px;padding:0}
.legend svg{display:inline-block;width:34px;height:10px;margin-right:8px;vertical-align:middle}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums;white-space:nowrap}
th,td{padding:6px 14px 6px 0;text-align:right;border-bottom:1px solid var(--rule)}
th{font-weight:600;color:var(--faint)}th:first-child,td:first-child{text-align:left}.wrapped td{max-width:22em;white-space:normal;overflow-wrap:anywhere;vertical-align:top}
td:first-child svg{display:inline-block;width:26px;height:10px;margin-right:8px;vertical-align:middle}
.best{font-weight:600}
.notes{margin:0 0 8px;padding:10px 16px 10px 32px;background:var(--note);border-radius:6px;font-size:14px}
.notes b{font-weight:600}
${tonesOf(lightTones)}
@media (prefers-color-scheme:dark){
:root{--page:#0d1117;--text:#e6edf3;--faint:#9198a1;--rule:#2b323a;--note:#2b2413}
${tonesOf(darkTones)}
}
@media print{
:root{color-scheme:light;--page:#fff;--text:#000;--faint:#444;--rule:#ccc;--note:#f4f4f4}
${tonesOf(lightTones)}
body{max-width:none;padding:0;font-size:11px}.charts{grid-template-columns:1fr 1fr;gap:12px}
table{font-size:9px}th,td{padding:3px 7px 3px 0}.scroll{overflow:visible}
}`;

/** A self-contained page: no script, external font, image or address. */
export function page(title: string, subtitle: string, parts: readonly string[]): string {
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escaped(title)}</title>
<style>${style}
</style>
</head>
<body>
<h1>${escaped(title)}</h1>
<p class="faint">${escaped(subtitle)}</p>
${parts.filter((part) => part !== '').join('\n')}
</body>
</html>
`;
}

/** A table in which the first cell of each row shows the tone of a curve, if `tones` has one. */
export function tableHtml(
  head: readonly { title: string; meaning?: string }[],
  rows: readonly { tone?: number; isBest?: boolean; cells: readonly string[] }[],
): string {
  const titles = head.map(
    ({ title, meaning = '' }) => `<th title="${escaped(meaning)}">${escaped(title)}</th>`,
  );
  const body = rows.map(({ tone, isBest, cells: [first = '', ...others] }) => {
    const lead = `<td>${tone === undefined ? '' : toneSample(tone)}${escaped(first)}</td>`;
    const rest = others.map((cell) => `<td>${escaped(cell)}</td>`).join('');
    return `<tr${isBest ? ' class="best"' : ''}>${lead}${rest}</tr>`;
  });
  return `<div class="scroll"><table><thead><tr>${titles.join('')}</tr></thead>
<tbody>${body.join('\n')}</tbody></table></div>`;
}

export function legendHtml(labels: readonly string[]): string {
  const entries = labels.map((label, index) => `<li>${toneSample(index)}${escaped(label)}</li>`);
  return `<ul class="legend">${entries.join('')}</ul>`;
}

export function notesHtml(notes: readonly { reason: string; message: string }[]): string {
  if (notes.length === 0) return '';
  const entries = notes.map(
    ({ reason, message }) => `<li><b>${escaped(reason)}</b> ${escaped(message)}</li>`,
  );
  return `<ul class="notes">${entries.join('')}</ul>`;
}

/** Class of the curve at an index in the list of all curves of the page. */
export function toneOf(index: number): string {
  return `tone${index % lightTones.length}`;
}

export function escaped(text: string): string {
  return text
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;');
}

function toneSample(tone: number): string {
  return `<svg viewBox="0 0 34 10" aria-hidden="true"><path class="line ${toneOf(tone)}" d="M2 5h30"/></svg>`;
}
