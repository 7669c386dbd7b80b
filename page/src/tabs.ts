import { el } from './element.js';

let made = 0;

/** Panels of which one is shown; arrow keys switch between them. */
export function tabs(label: string, panels: readonly (readonly [string, HTMLElement])[]): HTMLElement {
  const group = ++made;
  const heads = panels.map(([title], index) =>
    el(
      'button',
      {
        role: 'tab',
        id: `tab-${group}-${index}`,
        'aria-controls': `panel-${group}-${index}`,
        click: () => choose(index),
      },
      title,
    ),
  );
  const bodies = panels.map(([, content], index) =>
    el(
      'div',
      {
        role: 'tabpanel',
        id: `panel-${group}-${index}`,
        'aria-labelledby': `tab-${group}-${index}`,
        tabindex: 0,
      },
      content,
    ),
  );
  const choose = (chosen: number): void => {
    heads.forEach((head, index) => {
      head.setAttribute('aria-selected', String(index === chosen));
      head.tabIndex = index === chosen ? 0 : -1;
      bodies[index]!.hidden = index !== chosen;
    });
  };
  const list = el(
    'div',
    {
      role: 'tablist',
      'aria-label': label,
      class: 'tabs',
      keydown: (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[(event as KeyboardEvent).key];
        const at = heads.indexOf(document.activeElement as HTMLButtonElement);
        if (step === undefined || at < 0) return;
        const next = (at + step + heads.length) % heads.length;
        choose(next);
        heads[next]!.focus();
      },
    },
    ...heads,
  );
  choose(0);
  return el('div', {}, list, ...bodies);
}
