import { createContext, Script } from 'node:vm';
import { Environment, Interpreter, parse, tokenize } from '@huggingface/jinja';
import { DataError, describeValue } from './dataErrors.js';

/** How the chats of a data set are converted to text. */
export interface ChatOptions {
  /** Field with the list of messages. */
  field: string;
  /** Jinja source, as in tokenizer_config.json. */
  template: string;
  /** Variables for the template: `bos_token`, `eos_token` and others of tokenizer_config.json. */
  tokens: Readonly<Record<string, string>>;
}

/** A chat as text, and the spans that an assistant says: in UTF-16 units, end exclusive, in order. */
export interface RenderedChat {
  text: string;
  spans: readonly (readonly [start: number, end: number])[];
}

export interface ChatLimits {
  /** For one chat, including the renderings that find what an assistant says. */
  seconds: number;
  /** Length of a rendered chat in UTF-16 units. */
  lengthMax: number;
  messagesMax: number;
}

export const chatLimits: ChatLimits = { seconds: 10, lengthMax: 8 * 2 ** 20, messagesMax: 1000 };

/** Most elements that `range` may return: templates use it to count messages. */
const rangeMax = 100_000;

/** The template cannot render this row as a chat. */
class ChatInvalid extends Error {}

/**
 * Renders chats as transformers' apply_chat_template does, and finds what an assistant says in them: from the end of the generation prompt
 * to the end of the message, including its end marks.
 *
 * A template is untrusted code. It can access only its messages, and its run time and output are limited.
 */
export class ChatTemplate {
  private readonly program: ReturnType<typeof parse>;

  /** Throws DataError CHAT_TEMPLATE_INVALID. */
  constructor(
    private readonly options: ChatOptions,
    private readonly limits: ChatLimits = chatLimits,
  ) {
    try {
      // With the same options as in transformers.
      this.program = within(limits.seconds, () =>
        parse(tokenize(options.template, { lstrip_blocks: true, trim_blocks: true })),
      );
    } catch (error) {
      throw new DataError('CHAT_TEMPLATE_INVALID', { problem: problemOf(error) });
    }
  }

  /** Throws DataError CHAT_INVALID with the row's position. */
  render(messages: unknown, tools: unknown, { file, place }: { file: string; place: string }): RenderedChat {
    try {
      const checked = this.check(messages);
      return within(this.limits.seconds, () => this.withSpans(checked, tools));
    } catch (error) {
      throw new DataError('CHAT_INVALID', { file, place, problem: problemOf(error) });
    }
  }

  private check(messages: unknown): { role: string }[] {
    const { field } = this.options;
    if (!Array.isArray(messages) || messages.length === 0)
      throw new ChatInvalid(`expected a list of messages in "${field}", got ${describeValue(messages)}`);
    if (messages.length > this.limits.messagesMax)
      throw new ChatInvalid(`expected at most ${this.limits.messagesMax} messages, got ${messages.length}`);
    for (const [index, message] of messages.entries()) {
      const role = isObject(message) ? message['role'] : undefined;
      if (typeof role !== 'string')
        throw new ChatInvalid(`expected a text "role" in message ${index + 1}, got ${describeValue(role)}`);
      const content = (message as Record<string, unknown>)['content'];
      if (typeof content === 'number' || typeof content === 'boolean')
        throw new ChatInvalid(
          `expected text in "content" of message ${index + 1}, got ${describeValue(content)}`,
        );
    }
    const checked = messages as { role: string }[];
    if (!checked.some(({ role }) => role === 'assistant'))
      throw new ChatInvalid('expected a message of the role "assistant" to learn from, got none');
    return checked;
  }

  private withSpans(messages: { role: string }[], tools: unknown): RenderedChat {
    const run = (count: number, asks: boolean) => this.run(messages.slice(0, count), tools, asks);
    const text = run(messages.length, false);
    if (/\p{Surrogate}/u.test(text))
      throw new ChatInvalid('expected whole characters, got half of a surrogate pair');
    const spans: [number, number][] = [];
    for (const [index, { role }] of messages.entries()) {
      if (role !== 'assistant') continue;
      const said = index === messages.length - 1 ? text : run(index + 1, false);
      const before = index === 0 ? '' : attempt(() => run(index, true));
      const span =
        before !== null && said.startsWith(before) && text.startsWith(said)
          ? ([before.length, said.length] as [number, number])
          : this.spanOfContent(messages, index, tools, { text, said });
      if (span === null)
        throw new ChatInvalid(
          `what the template writes of message ${index + 1}, of the assistant, cannot be separated from the rest`,
        );
      spans.push(span);
    }
    return { text, spans };
  }

  /**
   * The span of a message that a template writes differently once other messages follow: the text that changes with its content, and the
   * end marks that follow the message when it is the last.
   */
  private spanOfContent(
    messages: readonly { role: string }[],
    index: number,
    tools: unknown,
    { text, said }: { text: string; said: string },
  ): [number, number] | null {
    const { content } = messages[index] as { content?: unknown };
    const words = typeof content === 'string' ? content.trim() : '';
    if (words === '') return null;
    // A private-use character, which normal text does not contain.
    const changed = messages.map((message, at) =>
      at === index ? { ...message, content: '\ue000' } : message,
    );
    const other = this.run(changed, tools, false);
    const mark = other.indexOf('\ue000');
    if (mark < 0 || !text.startsWith(other.slice(0, mark)) || !text.endsWith(other.slice(mark + 1)))
      return null;
    const end = text.length - (other.length - mark - 1);
    const marks = said.slice(said.lastIndexOf(words) + words.length);
    return [mark, text.startsWith(marks, end) ? end + marks.length : end];
  }

  private run(messages: readonly unknown[], tools: unknown, asksForAnswer: boolean): string {
    const environment = new Environment();
    const values: Record<string, unknown> = {
      ...{ true: true, false: false, none: null, True: true, False: false, None: null },
      raise_exception: (message: unknown) => {
        throw new ChatInvalid(String(message).slice(0, 300));
      },
      range,
      // A fixed date, so that a data set is the same whenever it is prepared: the default of Llama's own templates.
      strftime_now: () => '26 Jul 2024',
      messages,
      tools: tools ?? null,
      documents: null,
      add_generation_prompt: asksForAnswer,
      ...this.options.tokens,
    };
    for (const [name, value] of Object.entries(values)) environment.set(name, value);
    const { value: text } = new Interpreter(environment).run(this.program) as { value: string };
    if (text.length > this.limits.lengthMax)
      throw new ChatInvalid(
        `expected a text of at most ${this.limits.lengthMax} characters, got ${text.length}`,
      );
    return text;
  }
}

/** Null if the template rejects the chat. */
function attempt(render: () => string): string | null {
  try {
    return render();
  } catch (error) {
    if (isTimeout(error)) throw error;
    return null;
  }
}

function range(start: number, stop?: number, step = 1): number[] {
  const [from, to] = stop === undefined ? [0, start] : [start, stop];
  const count = Math.max(0, Math.ceil((to - from) / step));
  if (!(count <= rangeMax)) throw new ChatInvalid(`expected a range of at most ${rangeMax}, got ${count}`);
  return Array.from({ length: count }, (_, index) => from + index * step);
}

const script = new Script('run()');

/** Interrupts code that takes too long: only a vm script, with everything that it calls, can be interrupted. */
function within<T>(seconds: number, run: () => T): T {
  return script.runInContext(createContext({ run }), { timeout: Math.ceil(1000 * seconds) }) as T;
}

function isTimeout(error: unknown): boolean {
  return (error as { code?: unknown } | null)?.code === 'ERR_SCRIPT_EXECUTION_TIMEOUT';
}

function problemOf(error: unknown): string {
  if (error instanceof ChatInvalid) return error.message;
  if (isTimeout(error)) return 'the template took too long, and was ended';
  return `the template failed: ${(error instanceof Error ? error.message : String(error)).split('\n')[0]!.slice(0, 200)}`;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
