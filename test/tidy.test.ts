import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { describe, expect, it } from 'vitest';

const root = fileURLToPath(new URL('..', import.meta.url));
const packages = ['sdk', 'engine', 'page', 'server', 'cli'];

interface Import {
  file: string;
  /** Path from the root for our own files, else the name of a package. */
  target: string;
  typeOnly: boolean;
}

const files = packages.flatMap((name) => sourceFiles(join(root, name, 'src')));
const imports = files.flatMap(importsOf);

describe('what may import what', () => {
  const rules: { name: string; from: RegExp; forbidden: (target: string, typeOnly: boolean) => boolean }[] = [
    {
      name: 'the SDK knows none of our packages',
      from: /^sdk\//,
      forbidden: (target) => target.startsWith('@relora/'),
    },
    {
      name: 'the CLI stands on the public SDK only',
      from: /^cli\//,
      forbidden: (target) => target.startsWith('@relora/') && target !== '@relora/sdk',
    },
    {
      name: 'the page knows the contract by its types alone, and one library',
      from: /^page\//,
      forbidden: (target, typeOnly) =>
        target === '@relora/sdk/contract' ? !typeOnly : !/^page\/|^uplot$/.test(target),
    },
    {
      name: 'the engine knows no job, no gRPC and no Prometheus',
      from: /^engine\//,
      forbidden: (target) => /^@relora\/|grpc|^prom-client|^kysely|^@photostructure/.test(target),
    },
    {
      name: 'data and plans of the engine need neither tensors nor native code',
      from: /^engine\/src\/(data|plan)\//,
      forbidden: (target, typeOnly) =>
        !typeOnly && /^@tensorflow\/|^engine\/src\/(device|model|training)\//.test(target),
    },
    {
      name: 'the service process never loads the engine, only its plans, how files are opened and where native code lies',
      from: /^server\/src\/(?!trainer\/process\/)/,
      forbidden: (target, typeOnly) =>
        /^@relora\/engine(?!\/(plan|files|binaries)$)/.test(target) && !typeOnly,
    },
    {
      name: 'the domain does not know gRPC',
      from: /^server\/src\/(jobs|artifacts|datasets|weights|uploads|store|trainer)\//,
      forbidden: (target) => /grpc|^@relora\/sdk|^server\/src\/api\//.test(target),
    },
    {
      name: 'the trainer process knows neither the store nor the API',
      from: /^server\/src\/trainer\/process\//,
      forbidden: (target, typeOnly) =>
        !typeOnly &&
        /^server\/src\/(jobs|api|artifacts|datasets|weights|uploads|metrics|web)\/|^kysely|^@photostructure|^server\/src\/trainer\/supervisor/.test(
          target,
        ),
    },
  ];

  for (const rule of rules) {
    it(rule.name, () => {
      expect(imports.some((entry) => rule.from.test(entry.file))).toBe(true);
      const broken = imports.filter(
        (entry) => rule.from.test(entry.file) && rule.forbidden(entry.target, entry.typeOnly),
      );
      expect(broken.map((entry) => `${entry.file} imports ${entry.target}`)).toEqual([]);
    });
  }

  it('files do not import each other in a circle', () => {
    const graph = new Map<string, string[]>();
    for (const { file, target, typeOnly } of imports) {
      if (!typeOnly && files.includes(target)) graph.set(file, [...(graph.get(file) ?? []), target]);
    }
    expect(findCycle(graph)).toEqual([]);
  });

  // Types count here: a folder whose types need another one's cannot be read, or moved, without it. A file at the top of
  // a package stands for itself, since some carry everything (errors.ts) and some put everything together (main.ts).
  const levels: [string, (file: string) => string][] = [
    ['folders', (file) => (/^\w+\/src\/[^/]+$/.test(file) ? file : dirname(file))],
    ['folders with those inside', (file) => file.split('/').slice(0, 3).join('/')],
  ];
  it.each(levels)('%s do not import each other in a circle', (_, folderOf) => {
    const graph = new Map<string, string[]>();
    for (const { file, target, typeOnly } of imports) {
      const [from, to] = [folderOf(file), folderOf(target)];
      if (typeOnly && from === file && to === target) continue; // two files, as above
      if (files.includes(target) && from !== to) graph.set(from, [...(graph.get(from) ?? []), to]);
    }
    expect(findCycle(graph)).toEqual([]);
  });
});

describe('how the tree looks', () => {
  it('no folder has a name that says nothing', () => {
    const vague = files.filter((file) => /\/(utils?|common|helpers?|core|misc|lib)\//.test(file));
    expect(vague).toEqual([]);
  });

  it('only index files are barrels', () => {
    const barrels = files.filter((file) => {
      if (/\/(index|contract)\.ts$/.test(file)) return false;
      const statements = parse(file).statements;
      return (
        statements.length > 0 &&
        statements.every((statement) => ts.isExportDeclaration(statement) && statement.moduleSpecifier)
      );
    });
    expect(barrels).toEqual([]);
  });

  it('every file is reached from an entry point', () => {
    const entries = files.filter((file) =>
      /\/src\/(index|main|contract)\.ts$|\/(binaries|data|io|plan|cuda|conformance|testing)\/index\.ts$|\/trainer\/process\/(main|heartbeatThread|rankPlace)\.ts$|\/data\/(feedThread|encoderThread|sourceThread)\.ts$/.test(
        file,
      ),
    );
    const reached = new Set(entries);
    const waiting = [...entries];
    for (let file = waiting.pop(); file !== undefined; file = waiting.pop()) {
      for (const { target } of imports.filter((entry) => entry.file === file)) {
        if (files.includes(target) && !reached.has(target)) {
          reached.add(target);
          waiting.push(target);
        }
      }
    }
    expect(files.filter((file) => !reached.has(file))).toEqual([]);
  });

  it('nothing is left for later without a reason', () => {
    const marked = files.filter((file) =>
      /\b(TODO|FIXME|XXX)\b/.test(readFileSync(join(root, file), 'utf8')),
    );
    expect(marked).toEqual([]);
  });
});

/** Words that readers have to read twice, or that are not in American spelling, with what to write instead. */
const verbs =
  'categor|diagonal|final|general|local|maxim|memor|minim|normal|optim|organ|orthogonal|parallel|prior|quant|random|' +
  'recogn|serial|special|stabil|standard|summar|synchron|token|util|vector|visual';
const avoided: readonly [RegExp, string][] = [
  [/\b(told|tells)\b/i, 'reports, says, shows, recognized'],
  [/\banew\b/i, 'again, from the beginning'],
  [/\b(go|goes|going|went) on\b/i, 'resumes, continues'],
  [/\bmanners\b/i, 'what they share'],
  [/colour|favour|behaviour|neighbour|honour/i, '-or'],
  [new RegExp(`(${verbs})is(e|ing|ation)`, 'i'), '-ize'],
  // `initialisation` of the contract keeps its spelling until 1.0, and what is named after it with it.
  [/initialis(e|ing)|reinitialisation/i, '-ize'],
  [
    /\b(licence|catalogue|centre|grey|artefact|whilst|fulfil)\b/i,
    'license, catalog, center, gray, artifact, while, fulfill',
  ],
  // One word, one thing: a restart is a merge and what follows it, a step that is skipped was not finite.
  [
    /\brestart(s|ed|ing)?( of)? (a|an|the|its|this) (server|trainer|machine|process|service)s?\b/i,
    'started again, stopped, rebooted',
  ],
  [/\bre-?started (server|trainer|machine|process|service)\b/i, 'one that was started again'],
  [/\bskip(s|ped|ping)? (on request|as asked)\b/i, 'omitted on request'],
  [/(label|model|travel|total|signal|initial)l(ed|ing)\b/i, 'one l'],
  [/\bforet(el|ol)/i, 'predicts, expects'],
];

/** Of pages alone, whose readers do not know the project: words that are clear only to those who wrote them. */
const avoidedOnPages: readonly [RegExp, string][] = [
  [/\bfores(ee|aw)/i, 'estimates, predicts'],
  [/\b(lent|owe[ds]?|likeliest|rightly|surely|whoever)\b/i, 'reserved, sends, most likely, correctly, who'],
  [/\bso many\b/i, 'this many, an interval of, at most N'],
  [/\bbeside\b/i, 'besides, in addition to, compared with, next to, at the same time as'],
  [/\b(hold|holds|held) to\b/i, 'compared with, limited to, confined to'],
  [/\bhears? (so|of)\b/i, 'is informed, gets an error'],
  [/\bcan(not)? be had\b/i, 'is available, can be fetched'],
  [/\bwithout a word\b/i, 'without a message, silently'],
  [/\bput(s|ting)? \w+( \w+)? right\b|\bput right\b/i, 'cleans up, repairs'],
  [/\b(comes?|brings?|takes?) ([a-z]+ )?along\b/i, 'includes'],
  [/\bgets? on\b/i, 'makes progress'],
  [/\b(is|was|are|were) away\b/i, 'cannot be reached'],
  [/\b(throw|throws|thrown) away\b/i, 'deletes, purges'],
  [/\bfor ever\b/i, 'forever'],
  [/\b(job|server|trainer|model|run|file)s? goes? with\b/i, 'has, includes'],
];

describe('how it is written', () => {
  const prose = [
    ...packages.map((name) => join(name, 'src')),
    ...['docs', 'proto', 'examples', 'deploy', 'bench', 'scripts', 'engine/native', 'engine/cuda', 'test'],
  ].flatMap((folder) =>
    readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
      .filter(
        (entry) => entry.isFile() && /\.(ts|mjs|py|md|proto|ya?ml|cpp|cu|h|service|snap)$/.test(entry.name),
      )
      .map((entry) => relative(root, join(entry.parentPath, entry.name))),
  );
  const pages = [
    'README.md',
    'CONTRIBUTING.md',
    'CHANGELOG.md',
    ...packages.map((name) => join(name, 'README.md')),
  ];
  const read = [...prose, ...pages.filter((file) => existsSync(join(root, file)))].filter(
    // What a program wrote, or people elsewhere, stays as it was written; this file has the words themselves.
    (file) =>
      !/\/(generated|fixtures|build)\/|^bench\/results\/|^test\/(tidy\.test\.ts|full-report\.md)$/.test(file),
  );

  it('in words that need one reading, with American spelling', () => {
    expect(read.length).toBeGreaterThan(200);
    expect(read.flatMap((file) => found(file, avoided))).toEqual([]);
  });

  it('on pages in the words of the field', () => {
    const shown = read.filter((file) => pages.includes(file) || /^docs\/.*\.md$/.test(file));
    expect(shown.length).toBeGreaterThan(30);
    expect(shown.flatMap((file) => found(file, avoidedOnPages))).toEqual([]);
  });
});

/** Where a file has words to avoid, with what to write instead. */
function found(file: string, words: readonly [RegExp, string][]): string[] {
  const lines = readFileSync(join(root, file), 'utf8').split('\n');
  return lines.flatMap((line, index) =>
    words.flatMap(([word, better]) => {
      const match = word.exec(line);
      return match === null ? [] : [`${file}:${index + 1}: "${match[0]}" (better: ${better})`];
    }),
  );
}

function sourceFiles(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter(
      (entry) =>
        entry.isFile() && /(?<!\.d)\.ts$/.test(entry.name) && !entry.parentPath.includes('generated'),
    )
    .map((entry) => relative(root, join(entry.parentPath, entry.name)));
}

function parse(file: string): ts.SourceFile {
  return ts.createSourceFile(file, readFileSync(join(root, file), 'utf8'), ts.ScriptTarget.Latest, true);
}

function importsOf(file: string): Import[] {
  const found: Import[] = [];
  const add = (specifier: string, typeOnly: boolean) => {
    const target = specifier.startsWith('.')
      ? relative(root, resolve(root, dirname(file), specifier)).replace(/\.js$/, '.ts')
      : specifier;
    found.push({ file, target, typeOnly });
  };
  const visit = (node: ts.Node) => {
    if ((ts.isImportDeclaration(node) || ts.isExportDeclaration(node)) && node.moduleSpecifier) {
      const typeOnly = ts.isImportDeclaration(node)
        ? node.importClause?.isTypeOnly === true
        : node.isTypeOnly;
      add((node.moduleSpecifier as ts.StringLiteral).text, typeOnly);
    } else if (ts.isCallExpression(node) && node.expression.kind === ts.SyntaxKind.ImportKeyword) {
      const argument = node.arguments[0];
      if (argument && ts.isStringLiteral(argument)) add(argument.text, false);
    } else if (
      ts.isImportTypeNode(node) &&
      ts.isLiteralTypeNode(node.argument) &&
      ts.isStringLiteral(node.argument.literal)
    ) {
      add(node.argument.literal.text, true);
    }
    ts.forEachChild(node, visit);
  };
  visit(parse(file));
  return found;
}

function findCycle(graph: Map<string, string[]>): string[] {
  const state = new Map<string, 'open' | 'done'>();
  const path: string[] = [];
  const walk = (file: string): string[] => {
    if (state.get(file) === 'done') return [];
    if (state.get(file) === 'open') return [...path.slice(path.indexOf(file)), file];
    state.set(file, 'open');
    path.push(file);
    for (const target of graph.get(file) ?? []) {
      const cycle = walk(target);
      if (cycle.length > 0) return cycle;
    }
    path.pop();
    state.set(file, 'done');
    return [];
  };
  for (const file of graph.keys()) {
    const cycle = walk(file);
    if (cycle.length > 0) return cycle;
  }
  return [];
}
