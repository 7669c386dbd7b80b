import { el } from './element.js';

const choices = ['system', 'light', 'dark'] as const;
type Choice = (typeof choices)[number];

const listeners = new Set<() => void>();
const isDark = matchMedia('(prefers-color-scheme: dark)');
const resolved = new Map<string, string>();
const probe = el('span', { hidden: true });

isDark.addEventListener('change', changed);

/** Called when the colors change; returns the function that ends it. */
export function onTheme(listener: () => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** A color of the style sheet in a form that a canvas accepts. */
export function cssColor(name: string): string {
  let color = resolved.get(name);
  if (color === undefined) {
    if (!probe.isConnected) document.body.append(probe);
    probe.style.color = `var(${name})`;
    color = getComputedStyle(probe).color;
    resolved.set(name, color);
  }
  return color;
}

/** The switch between the system's colors, light and dark. */
export function themeSwitch(): HTMLElement {
  const stored = localStorage.getItem('theme');
  const select = el(
    'select',
    {
      'aria-label': 'Colors',
      change: () => {
        localStorage.setItem('theme', select.value);
        apply(select.value as Choice);
      },
    },
    ...choices.map((choice) =>
      el(
        'option',
        { value: choice, selected: choice === stored },
        choice[0]!.toUpperCase() + choice.slice(1),
      ),
    ),
  );
  apply((stored ?? 'system') as Choice);
  return select;
}

function apply(choice: Choice): void {
  document.documentElement.dataset.theme = choice;
  changed();
}

function changed(): void {
  resolved.clear();
  for (const listener of listeners) listener();
}
