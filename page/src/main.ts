import { compareView } from './compareView.js';
import { datasetView, datasetsView } from './datasetsView.js';
import { messageOf } from './api.js';
import { add, el, fill } from './element.js';
import { jobView } from './jobView.js';
import { jobsView } from './jobsView.js';
import { noticePlace } from './notice.js';
import { queueView } from './queueView.js';
import { onRoute } from './route.js';
import { serverView } from './serverView.js';
import { accountLine, loginForm, whoAmI } from './session.js';
import { themeSwitch } from './theme.js';
import type { View } from './view.js';

const pages = [
  { path: '/jobs', title: 'Jobs', key: 'j' },
  { path: '/compare', title: 'Compare', key: 'c' },
  { path: '/queue', title: 'Queue', key: 'q' },
  { path: '/datasets', title: 'Data sets', key: 'd' },
  { path: '/server', title: 'Server', key: 's' },
];

const main = el('main', { id: 'main', tabindex: -1 });
const links = pages.map(({ path, title }) => el('a', { href: path }, title));
let shown: View | undefined;

function show(): void {
  shown?.end();
  const { pathname, searchParams } = new URL(location.href);
  const [, kind = '', id] = pathname.split('/');
  shown = viewOf(kind, id === undefined ? undefined : decoded(id), searchParams);
  document.title = `${shown.title} · ReLoRA`;
  fill(main, shown.element);
  for (const link of links) {
    const isHere = link.pathname === `/${kind || 'jobs'}`;
    if (isHere) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  scrollTo(0, 0);
}

/** A part of an address that somebody typed may be wrongly encoded. */
function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function viewOf(kind: string, id: string | undefined, query: URLSearchParams): View {
  if (kind === 'jobs' && id) return jobView(id);
  if (kind === 'compare') return compareView((query.get('jobs') ?? '').split(',').filter(Boolean));
  if (kind === 'queue') return queueView();
  if (kind === 'datasets') return id ? datasetView(id) : datasetsView();
  if (kind === 'server') return serverView();
  return jobsView();
}

/** g, then the first letter of a page. */
function goByKey(): void {
  let isGoing = false;
  document.addEventListener(
    'keydown',
    (event) => {
      const isTyping =
        event.target instanceof HTMLInputElement || event.target instanceof HTMLTextAreaElement;
      if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
      const at = pages.findIndex(({ key }) => key === event.key);
      if (isGoing && at >= 0) {
        event.stopImmediatePropagation();
        links[at]!.click();
      }
      isGoing = event.key === 'g';
    },
    true,
  );
}

// Before anything is shown in other colors.
const colors = themeSwitch();
const side = el(
  'nav',
  { class: 'side', 'aria-label': 'Pages' },
  el('a', { href: '/jobs', class: 'brand' }, 'ReLoRA'),
  ...links,
  el('span', { class: 'grow' }),
);

async function begin(): Promise<void> {
  const caller = await whoAmI();
  if (caller === undefined)
    return fill(
      main,
      loginForm(() => void begin()),
    );
  add(side, accountLine(caller), el('a', { href: '/metrics', class: 'quiet' }, 'Metrics'), colors);
  goByKey();
  onRoute(show);
  show();
}

document.body.append(
  el('a', { href: '#main', class: 'skip' }, 'Skip to the content'),
  side,
  main,
  noticePlace(),
);
begin().catch((error: unknown) => fill(main, el('p', { class: 'problem', role: 'alert' }, messageOf(error))));
