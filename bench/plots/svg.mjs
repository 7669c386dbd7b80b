/** Width of a figure; panels are stacked vertically. */
export const width = 860;
export const margin = 24;

const titleHeight = 34;
const gap = 22;

/** Readable on white and on black; viewers that support neither scheme get the light one. */
const style = `
  .page { fill: #ffffff } text { fill: #1f2328; font: 13px system-ui, 'DejaVu Sans', sans-serif }
  .title { font-weight: 600; font-size: 15px } .faint { fill: #59636e } .rule { stroke: #d1d9e0; fill: none }
  .tone0 { fill: #2a6fdb; stroke: #2a6fdb } .tone1 { fill: #c2620f; stroke: #c2620f } .tone2 { fill: #1f8f4e; stroke: #1f8f4e }
  .tone3 { fill: #b83280; stroke: #b83280 } .tone4 { fill: #7a52cc; stroke: #7a52cc } .tone5 { fill: #6e7781; stroke: #6e7781 }
  .line { fill: none; stroke-width: 1.8; stroke-linejoin: round } .key { fill: none; stroke-width: 4 }
  .band { stroke: none; opacity: 0.18 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 } text { fill: #e6edf3 } .faint { fill: #9198a1 } .rule { stroke: #3d444d }
    .tone0 { fill: #589df6; stroke: #589df6 } .tone1 { fill: #e8934a; stroke: #e8934a } .tone2 { fill: #4cc27c; stroke: #4cc27c }
    .tone3 { fill: #ee7ab9; stroke: #ee7ab9 } .tone4 { fill: #b08cf5; stroke: #b08cf5 } .tone5 { fill: #9198a1; stroke: #9198a1 }
    .line, .key { fill: none } .band { stroke: none }
  }`;
const toneCount = 6;

export function toneOf(index) {
  return `tone${index % toneCount}`;
}

const dashes = ['', ' stroke-dasharray="6 3"', ' stroke-dasharray="2 2"'];

/** Dash pattern that distinguishes lines of the same tone, for more lines than tones. */
export function dashOf(index) {
  return dashes[Math.floor(index / toneCount) % dashes.length];
}

/** A figure of panels { title, height, content }; content is drawn from (0, 0), `width - 2 * margin` wide. */
export function figure(heading, panels) {
  let y = margin + titleHeight;
  const drawn = panels.map(({ title, height, content }) => {
    const panel = `<g transform="translate(${margin} ${y})">${text(0, 14, title, 'title')}
<g transform="translate(0 ${titleHeight - 8})">${content}</g></g>`;
    y += titleHeight + height + gap;
    return panel;
  });
  const height = y;
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" role="img" aria-label="${escaped(heading)}">
<style>${style}</style>
<rect class="page" width="${width}" height="${height}" rx="8"/>
${text(margin, margin + 12, heading, 'faint')}
${drawn.join('\n')}
</svg>
`;
}

export function text(x, y, content, classes = '', anchor = 'start') {
  return `<text x="${round(x)}" y="${round(y)}" class="${classes}" text-anchor="${anchor}">${escaped(content)}</text>`;
}

export function round(value) {
  return Math.round(10 * value) / 10;
}

function escaped(content) {
  return content.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('"', '&quot;');
}
