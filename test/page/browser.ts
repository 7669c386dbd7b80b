import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import puppeteer, { type Browser, type Page } from 'puppeteer-core';
import { afterAll, beforeAll, expect, onTestFinished } from 'vitest';
import { patienceMs } from '../patience.mjs';

/** Chromium, if installed: RELORA_TEST_CHROMIUM gives another path. */
const executablePath = [
  process.env.RELORA_TEST_CHROMIUM ?? '',
  '/usr/bin/chromium',
  '/usr/bin/chromium-browser',
  '/usr/bin/google-chrome',
].find((path) => path !== '' && existsSync(path));

export const hasChromium = executablePath !== undefined;
if (!hasChromium) console.log('No Chromium here: the tests of the page are skipped');

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

let browser: Browser | undefined;

/** One browser for all tests of a file. */
export function useBrowser(): void {
  beforeAll(async () => {
    if (executablePath === undefined) return;
    // The browser's sandbox needs privileges that a container rarely has; only our own page is opened here.
    browser = await puppeteer.launch({
      executablePath,
      args: ['--no-sandbox', '--disable-gpu', '--force-color-profile=srgb'],
    });
  });
  afterAll(async () => await browser?.close());
}

export interface OpenPage {
  page: Page;
  url: string;
  /** Errors of the page, and its requests to other hosts. */
  complaints: string[];
  go(path: string): Promise<void>;
  /** Resolves with the page's text once it matches. */
  untilText(wanted: string | RegExp): Promise<string>;
  press(...keys: string[]): Promise<void>;
}

/** A tab on a server's page; at the end of the test no request may have been refused, failed or gone to other hosts. */
export async function openPage(
  url: string,
  options: { scheme?: 'light' | 'dark'; width?: number; height?: number } = {},
): Promise<OpenPage> {
  const context = await browser!.createBrowserContext();
  const page = await context.newPage();
  const { scheme = 'light', width = 1440, height = 900 } = options;
  await page.setViewport({ width, height });
  await page.emulateMediaFeatures([
    { name: 'prefers-color-scheme', value: scheme },
    { name: 'prefers-reduced-motion', value: 'reduce' },
  ]);
  const complaints: string[] = [];
  page.on('pageerror', (error) => complaints.push(String(error)));
  page.on('console', (message) => {
    if (message.type() === 'error') complaints.push(message.text());
  });
  page.on('request', (request) => {
    if (new URL(request.url()).origin !== new URL(url).origin) complaints.push(`asks ${request.url()}`);
  });
  onTestFinished(async () => await context.close());
  return {
    page,
    url,
    complaints,
    go: async (path) => void (await page.goto(url + path)),
    untilText: async (wanted) => {
      let text = '';
      const holds = async (): Promise<boolean> => {
        text = await page.evaluate(() => document.body.innerText);
        return typeof wanted === 'string' ? text.includes(wanted) : wanted.test(text);
      };
      await expect
        .poll(holds, { timeout: patienceMs, interval: 50 })
        .toBe(true)
        .catch(() => {
          throw new Error(`No ${wanted} on the page:\n${text}`);
        });
      return text;
    },
    press: async (...keys) => {
      for (const key of keys) await page.keyboard.press(key as never);
    },
  };
}

/** Accessibility problems found by axe: rules of WCAG 2.1 up to AA, including contrast. */
export async function faultsOf({ page }: OpenPage): Promise<string[]> {
  // The page's own policy allows no added script; the browser's protocol does.
  await page.evaluate(axe);
  return await page.evaluate(async () => {
    const { axe: run } = globalThis as unknown as {
      axe: {
        run(
          options: object,
        ): Promise<{ violations: { id: string; nodes: { html: string; failureSummary: string }[] }[] }>;
      };
    };
    const { violations } = await run.run({
      runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice'],
    });
    return violations.flatMap(({ id, nodes }) =>
      nodes.map(({ html, failureSummary }) => `${id}: ${html.slice(0, 160)} ${failureSummary}`),
    );
  });
}
