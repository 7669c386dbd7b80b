import { Argument, type Command } from 'commander';

const shells = ['bash', 'zsh', 'fish'] as const;
type Shell = (typeof shells)[number];

interface Completed {
  name: string;
  description: string;
  /** For example `--rank`, with descriptions. */
  options: { flag: string; description: string }[];
}

/** `relora completion bash`: prints a script for the shell to evaluate, made from the commands themselves. */
export function addCompletionCommand(program: Command): void {
  program
    .command('completion')
    .addArgument(new Argument('<shell>', 'shell for which the script is').choices(shells))
    .description('print a script for completing commands and options: source <(relora completion bash)')
    .action((shell: Shell) => {
      process.stdout.write(writers[shell](commandsOf(program), optionsOf(program)));
    });
}

function commandsOf(program: Command): Completed[] {
  return program.commands.map((command) => ({
    name: command.name(),
    description: firstPart(command.description()),
    options: optionsOf(command),
  }));
}

function optionsOf(command: Command): Completed['options'] {
  return command.options.flatMap(({ long, description, hidden }) =>
    long && !hidden ? [{ flag: long, description: firstPart(description) }] : [],
  );
}

/** Without characters that are special to a shell. */
function firstPart(text: string): string {
  return text
    .split(/[;:(]/)[0]!
    .replaceAll(/['"`$\\[\]]/g, '')
    .trim();
}

const flagsOf = (options: Completed['options']): string => options.map(({ flag }) => flag).join(' ');

const writers: Record<Shell, (commands: Completed[], global: Completed['options']) => string> = {
  bash: (commands, global) => `_relora() {
  local word="\${COMP_WORDS[COMP_CWORD]}" command="" each
  for each in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    case "$each" in -*) ;; *) command="$each"; break ;; esac
  done
  local words="${flagsOf(global)}"
  case "$command" in
    "") words="$words ${commands.map(({ name }) => name).join(' ')}" ;;
${commands.map(({ name, options }) => `    ${name}) words="$words ${flagsOf(options)}" ;;`).join('\n')}
  esac
  if [[ "$word" == -* || -z "$command" ]]; then
    COMPREPLY=($(compgen -W "$words" -- "$word"))
  else
    COMPREPLY=($(compgen -f -- "$word"))
  fi
}
complete -o filenames -F _relora relora
`,
  zsh: (commands, global) => `#compdef relora
_relora() {
  local -a commands
  commands=(
${commands.map(({ name, description }) => `    '${name}:${description}'`).join('\n')}
  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  case "$words[2]" in
${commands.map(({ name, options }) => `    ${name}) _arguments ${zshOptions([...global, ...options])} '*:file:_files' ;;`).join('\n')}
  esac
}
compdef _relora relora
`,
  fish: (commands, global) =>
    [
      'complete -c relora -n __fish_use_subcommand -f',
      ...commands.map(
        ({ name, description }) =>
          `complete -c relora -n __fish_use_subcommand -a ${name} -d '${description}'`,
      ),
      ...global.map(({ flag, description }) => `complete -c relora -l ${flag.slice(2)} -d '${description}'`),
      ...commands.flatMap(({ name, options }) =>
        options.map(
          ({ flag, description }) =>
            `complete -c relora -n '__fish_seen_subcommand_from ${name}' -l ${flag.slice(2)} -d '${description}'`,
        ),
      ),
      '',
    ].join('\n'),
};

function zshOptions(options: Completed['options']): string {
  return options.map(({ flag, description }) => `'${flag}[${description}]'`).join(' ');
}
