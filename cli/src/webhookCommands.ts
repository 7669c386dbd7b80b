import type { Command } from 'commander';
import { WebhookDeliveryState, type Webhook, type WebhookDelivery } from '@relora/sdk';
import { table } from './format.js';
import { label as labels, type Run } from './session.js';
import { wholeNumber } from './specOptions.js';

interface CreateFlags {
  id?: string;
  on?: string[];
  label?: Record<string, string>;
  secret?: string;
}

/** Commands for receivers of events, and for deliveries that failed. */
export function addWebhookCommands(program: Command, run: Run): void {
  const webhook = program.command('webhook').description('post events of jobs to a URL of yours');

  webhook
    .command('create')
    .description('create a webhook for a URL; its key is shown only now')
    .argument('<url>', 'https:// address')
    .option('--id <id>', 'id of the webhook; by default the server chooses one')
    .option(
      '--on <kind...>',
      'kinds of events, such as state or checkpoint; by default all except step and documents',
    )
    .option('--label <key=value...>', 'only jobs with this label', labels)
    .option(
      '--secret <key>',
      'key of the signatures, whsec_ followed by base64; by default the server makes one',
    )
    .action((url: string, { id, on, label, secret }: CreateFlags) =>
      run(async ({ client, output, signal }) => {
        const created = await client.createWebhook(url, {
          webhookId: id,
          eventKinds: on,
          labels: label,
          secret,
          signal,
        });
        output.result(created, () => [
          created.webhook.name,
          `Key of its signatures, which is not shown again: ${created.secret}`,
        ]);
      }),
    );

  webhook
    .command('list')
    .description('list webhooks')
    .action(() =>
      run(async ({ client, output, signal }) => {
        const webhooks: Webhook[] = [];
        for await (const each of client.listWebhooks({ signal })) webhooks.push(each);
        output.result({ webhooks }, () =>
          table([['NAME', 'URL', 'EVENTS', 'PENDING', 'DEAD', 'LAST FAILURE'], ...webhooks.map(rowOf)]),
        );
      }),
    );

  webhook
    .command('delete')
    .description('delete a webhook, and all messages that wait to be sent')
    .argument('<webhook>', 'name or id')
    .action((name: string) =>
      run(async ({ client, output, signal }) => {
        await client.deleteWebhook(nameOf(name), { signal });
        output.result({ name: nameOf(name) }, () => [`${nameOf(name)} is deleted`]);
      }),
    );

  webhook
    .command('test')
    .description('send a test message of the type relora.test now')
    .argument('<webhook>', 'name or id')
    .action((name: string) =>
      run(async ({ client, output, signal }) => {
        const result = await client.testWebhook(nameOf(name), { signal });
        const { failure, statusCode, seconds } = result;
        output.result(result, () => [
          failure === '' ? `Accepted with ${statusCode} after ${seconds.toFixed(3)} s` : failure,
        ]);
        if (failure !== '') process.exitCode = 1;
      }),
    );

  webhook
    .command('deliveries')
    .description('list messages that wait to be sent and dead letters, oldest first')
    .argument('<webhook>', 'name or id')
    .option('--dead', 'only dead letters')
    .option('--limit <count>', 'number of entries to show', wholeNumber, 50)
    .action((name: string, { dead, limit }: { dead?: boolean; limit: number }) =>
      run(async ({ client, output, signal }) => {
        const deliveries: WebhookDelivery[] = [];
        const state = dead ? WebhookDeliveryState.DEAD : undefined;
        for await (const each of client.listWebhookDeliveries(nameOf(name), { state, signal })) {
          deliveries.push(each);
          if (deliveries.length >= limit) break;
        }
        output.result({ deliveries }, () =>
          table([
            ['MESSAGE', 'JOB', 'SEQUENCE', 'EVENT', 'STATE', 'ATTEMPTS', 'FAILURE'],
            ...deliveries.map(rowOfDelivery),
          ]),
        );
      }),
    );

  webhook
    .command('resend')
    .description('send dead letters again')
    .argument('<webhook>', 'name or id')
    .argument('[message...]', 'ids of messages; by default all')
    .action((name: string, messageIds: string[]) =>
      run(async ({ client, output, signal }) => {
        const deliveryCount = await client.resendWebhookDeliveries(nameOf(name), { messageIds, signal });
        output.result({ deliveryCount }, () => [`${deliveryCount} will be sent again`]);
      }),
    );
}

function nameOf(text: string): string {
  return text.startsWith('webhooks/') ? text : `webhooks/${text}`;
}

function rowOf({ name, url, eventKinds, pendingCount, deadCount, lastFailure }: Webhook): string[] {
  return [name, url, eventKinds.join(','), String(pendingCount), String(deadCount), lastFailure];
}

function rowOfDelivery(delivery: WebhookDelivery): string[] {
  const { messageId, job, sequence, eventKind, state, attemptCount, failure } = delivery;
  const word = state.replace('WEBHOOK_DELIVERY_STATE_', '').toLowerCase();
  return [messageId, job, String(sequence), eventKind, word, String(attemptCount), failure];
}
