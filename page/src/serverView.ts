import { call, messageOf } from './api.js';
import { el, fill } from './element.js';
import { age, bytes, idOf, whole, word } from './format.js';
import { repeat, type View } from './view.js';

const pauseMs = 10_000;

/** Devices, disk and limits of the server. */
export function serverView(): View {
  const body = el('div', {}, el('p', { class: 'muted' }, 'Asking the server …'));
  const load = async (signal: AbortSignal): Promise<void> => {
    const [info, disk] = await Promise.all([
      call('ServerService', 'getServerInfo', {}, signal),
      call('ServerService', 'getDiskUse', { entryCount: 12 }, signal),
    ]);
    const devices = info.devices.map((device) =>
      el(
        'div',
        { class: 'card' },
        el(
          'div',
          { class: 'spread' },
          el('strong', {}, device.backend),
          device.isDefault ? el('span', { class: 'label' }, 'default') : null,
        ),
        el('div', {}, device.model),
        facts([
          ['Instructions', device.instructionSet || '–'],
          ['Threads', whole(device.threadCount)],
          ['Memory', device.memoryBytes === 0 ? 'not known' : bytes(device.memoryBytes)],
          ['float32', speed(device.float32Flops)],
          ['bfloat16', speed(device.bfloat16Flops)],
          ['Auto computes in', word(device.autoPrecision, 'PRECISION')],
        ]),
      ),
    );
    const used = [disk.jobBytes, disk.datasetBytes, disk.weightsBytes, disk.storeBytes].map(Number);
    const entries = disk.entries.map(({ name, bytes: size, purgeTime }) => {
      const kind = name.split('/')[0]!;
      const title =
        kind === 'weights'
          ? el('span', {}, name)
          : el('a', { href: `/${kind}/${idOf(name)}`, class: 'title' }, name);
      return el(
        'tr',
        {},
        el('td', {}, title),
        el('td', { class: 'right number' }, bytes(size)),
        el('td', { class: 'muted' }, purgeTime === undefined ? '' : 'deleted'),
      );
    });
    fill(
      body,
      el(
        'p',
        { class: 'muted' },
        `Version ${info.version}, started ${age(info.startTime)}, ${info.slotCount} ${Number(info.slotCount) === 1 ? 'slot' : 'slots'}`,
      ),
      el('h2', {}, 'Devices'),
      el('div', { class: 'cards' }, ...devices),
      el('h2', {}, 'Disk'),
      el(
        'div',
        { class: 'columns' },
        facts([
          ['Free', bytes(disk.freeBytes)],
          ['Jobs', bytes(used[0])],
          ['Data sets', bytes(used[1])],
          ['Weights', bytes(used[2])],
          ['Store', bytes(used[3])],
          ['Free after purge', bytes(disk.deletedBytes)],
        ]),
        el(
          'table',
          { class: 'rows' },
          el(
            'thead',
            {},
            el(
              'tr',
              {},
              el('th', { scope: 'col' }, 'Largest'),
              el('th', { scope: 'col', class: 'right' }, 'Size'),
              el('th', { scope: 'col' }, el('span', { class: 'unseen' }, 'State')),
            ),
          ),
          el('tbody', {}, ...entries),
        ),
      ),
      el('h2', {}, 'Limits'),
      el('dl', { class: 'limits' }, ...Object.entries(info.limits).sort().map(limitOf)),
    );
  };
  const end = repeat(async (signal) => {
    try {
      await load(signal);
    } catch (error) {
      if (!signal.aborted) fill(body, el('p', { class: 'problem', role: 'alert' }, messageOf(error)));
    }
  }, pauseMs);
  return {
    title: 'Server',
    element: el('section', {}, el('header', { class: 'bar' }, el('h1', {}, 'Server')), body),
    end,
  };
}

/** A setting of the server with a readable value. */
function limitOf([name, value]: [string, string]): HTMLElement {
  const number = Number(value);
  const isSize = name.includes('_BYTES_');
  const text = number < 1000 || Number.isNaN(number) ? value : isSize ? bytes(number) : whole(number);
  return el('div', {}, el('dt', {}, name), el('dd', { class: 'number', title: value }, text));
}

/** Measured operations per second; slow backends are not measured. */
function speed(flops: number | string): string {
  return Number(flops) > 0 ? `${whole(Number(flops) / 1e9)} GFLOP/s` : '–';
}

export function facts(pairs: readonly (readonly [string, string | HTMLElement])[]): HTMLElement {
  return el(
    'dl',
    { class: 'facts' },
    ...pairs.flatMap(([name, value]) => [el('dt', {}, name), el('dd', { class: 'number' }, value)]),
  );
}
