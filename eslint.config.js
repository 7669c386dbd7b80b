import tseslint from 'typescript-eslint';

const noSources =
  'Tests import what is built, by the name of its package or from dist/: never sources beside it.';
/** In a selector `/` cannot be written as it is. */
const source = '/(^|\\u002F)(engine|server|sdk|cli|page)\\u002Fsrc\\u002F/';

export default tseslint.config(
  {
    ignores: [
      '**/dist/',
      '**/node_modules/',
      '**/generated/',
      'engine/native/build/',
      'server/native/build/',
      'engine/cuda/build/',
      'engine/tensorflow/build/',
      'demo-output/',
      'release/',
      '.relora/',
      '**/*.d.ts',
    ],
  },
  {
    files: ['**/*.ts'],
    extends: [...tseslint.configs.recommended],
    rules: {
      '@typescript-eslint/consistent-type-imports': 'error',
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_', varsIgnorePattern: '^_' }],
      eqeqeq: 'error',
      'no-console': 'off',
      'prefer-const': 'error',
    },
  },
  {
    // What is wrong only for inputs that are long, or named like something that every object has.
    files: ['*/src/**/*.ts'],
    rules: {
      'no-restricted-syntax': [
        'error',
        {
          selector:
            'CallExpression[callee.property.name=/^(push|unshift|fromCharCode|fromCodePoint)$/] > SpreadElement',
          message: 'A long list does not fit into the arguments of a call: take its elements one by one.',
        },
        {
          // Every object has what Object.prototype has: a name from outside may be `constructor`.
          selector: 'BinaryExpression[operator="in"][left.type!="Literal"][left.type!="MemberExpression"]',
          message:
            'Object.hasOwn(object, key): `in` also finds what every object has, such as `constructor`.',
        },
        { selector: 'ForInStatement', message: 'Object.keys(object): for-in also lists what is inherited.' },
      ],
    },
  },
  {
    files: ['**/*.mjs', '**/*.js'],
    extends: [...tseslint.configs.recommended],
  },
  {
    // A module that is there twice has its classes and its state twice: a test once measured sources beside the builds that it ran.
    // What tests import in their turn is held to the same.
    files: ['test', 'bench', 'scripts', 'examples'].flatMap((folder) => [
      `${folder}/**/*.ts`,
      `${folder}/**/*.mjs`,
    ]),
    rules: {
      'no-restricted-imports': [
        'error',
        {
          patterns: [
            {
              regex: '(^|/)(engine|server|sdk|cli|page)/src/',
              message: noSources,
            },
          ],
        },
      ],
      'no-restricted-syntax': [
        'error',
        ...[
          `ImportExpression > Literal[value=${source}]`,
          `ImportExpression TemplateElement[value.raw=${source}]`,
          `CallExpression[callee.name="require"] > Literal[value=${source}]`,
          `CallExpression[callee.callee.name="createRequire"] > Literal[value=${source}]`,
          `CallExpression[callee.property.name=/^(importActual|importMock|mock|doMock)$/] > Literal[value=${source}]`,
        ].map((selector) => ({ selector, message: noSources })),
      ],
    },
  },
);
