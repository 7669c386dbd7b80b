import {
  Webhook as WebhookProto,
  WebhookDelivery as DeliveryProto,
  type CreateWebhookRequest,
  type WebhookServiceDefinition,
} from '@relora/sdk/contract';
import { quote, ServiceError } from '../errors.js';
import type { CallContext, Implementation } from '../grpc/service.js';
import { nameOf } from '../store/tenantIds.js';
import { timedId } from '../store/timedId.js';
import {
  defaultEventKinds,
  eventKinds,
  fieldOf,
  newSecret,
  readSecret,
  type EventKind,
  type Webhook,
} from '../webhooks/webhook.js';
import type { DeliveryCursor, WebhookStore, WebhookSummary } from '../webhooks/webhookStore.js';
import { enums } from './enums.js';
import { FieldChecks, listOf } from './fieldChecks.js';
import { fillPage } from './fillPage.js';
import { parsePageSize } from './pageToken.js';
import type { ApiParts } from './parts.js';
import { parseWebhookName } from './resourceNames.js';
import { toDate } from './toProto.js';

const urlLengthMax = 2000;

/** Webhooks of a tenant, and deliveries that failed. */
export function webhookService(parts: ApiParts): Implementation<typeof WebhookServiceDefinition> {
  const { webhooks, webhookSender, pageTokens, config, stopping } = parts;
  return {
    createWebhook: async (request, { caller }) => await createWebhook(parts, request, caller),

    async listWebhooks(request, { caller: { tenant } }) {
      const checks = new FieldChecks();
      const webhooksMax = parsePageSize(checks, request.pageSize);
      checks.throwIfWrong();
      const same = ['webhooks', tenant];
      const { messages, next } = await fillPage({
        after: pageTokens.read<{ name: string }>(same, request.pageToken),
        itemsMax: webhooksMax,
        bytesMax: config.pageBytesMax,
        read: async (place, itemsMax) => {
          const page = await webhooks.list({ tenant, after: place?.name ?? null, webhooksMax: itemsMax });
          return { items: page.webhooks, next: page.next === null ? null : { name: page.next } };
        },
        placeOf: ({ webhook }) => ({ name: webhook.name }),
        type: WebhookProto,
        toMessage: toWebhook,
      });
      return { webhooks: messages, nextPageToken: pageTokens.write(same, next) };
    },

    async deleteWebhook(request, { caller }) {
      const webhookId = parseWebhookName(caller.tenant, 'name', request.name);
      if (!(await webhooks.delete(webhookId))) throw notFound(webhookId);
      return {};
    },

    async testWebhook(request, { caller, signal }) {
      const webhook = await requireWebhook(webhooks, parseWebhookName(caller.tenant, 'name', request.name));
      const { id, ...result } = await webhookSender.test(webhook, AbortSignal.any([signal, stopping]));
      return { messageId: id, ...result };
    },

    async listWebhookDeliveries(request, { caller: { tenant } }) {
      const webhookId = parseWebhookName(tenant, 'parent', request.parent);
      const checks = new FieldChecks();
      const deliveriesMax = parsePageSize(checks, request.pageSize);
      const state = checks.word('state', request.state, enums.WebhookDeliveryState, null);
      checks.throwIfWrong();
      await requireWebhook(webhooks, webhookId);
      const same = ['deliveries', webhookId, state];
      const { messages, next } = await fillPage({
        after: pageTokens.read<DeliveryCursor>(same, request.pageToken),
        itemsMax: deliveriesMax,
        bytesMax: config.pageBytesMax,
        read: async (after, itemsMax) => {
          const page = await webhooks.deliveries({ webhookId, state, after, deliveriesMax: itemsMax });
          return { items: page.deliveries, next: page.next };
        },
        placeOf: ({ create_time_ms, id }) => ({ createTimeMs: create_time_ms, id }),
        type: DeliveryProto,
        toMessage: (row) => ({
          messageId: row.id,
          job: `jobs/${nameOf(row.job_id)}`,
          sequence: row.sequence,
          eventKind: row.kind,
          state: enums.WebhookDeliveryState.to[row.state],
          attemptCount: row.attempts,
          failure: row.failure,
          createTime: new Date(row.create_time_ms),
          nextTime: row.state === 'dead' ? undefined : new Date(row.next_time_ms),
        }),
      });
      return { deliveries: messages, nextPageToken: pageTokens.write(same, next) };
    },

    async resendWebhookDeliveries(request, { caller }) {
      const webhookId = parseWebhookName(caller.tenant, 'name', request.name);
      const checks = new FieldChecks();
      checks.count('message_ids', request.messageIds, 500);
      checks.throwIfWrong();
      await requireWebhook(webhooks, webhookId);
      return { deliveryCount: await webhooks.resend(webhookId, request.messageIds) };
    },
  };
}

async function createWebhook(
  { webhooks, reachable, config }: ApiParts,
  request: CreateWebhookRequest,
  { tenant, name: owner }: CallContext['caller'],
) {
  const checks = new FieldChecks();
  const name = checks.id('webhook_id', request.webhookId) ?? timedId('webhook', Date.now());
  const url = URL.canParse(request.url) ? new URL(request.url) : undefined;
  const problem = url === undefined ? 'an https:// address' : reachable.problemOf(url);
  if (request.url.length > urlLengthMax)
    checks.add('url', `at most ${urlLengthMax} characters`, request.url.length);
  else if (problem !== undefined) checks.add('url', problem, quote(request.url));
  checks.count('event_kinds', request.eventKinds, eventKinds.length);
  const choices = Object.fromEntries(eventKinds.map((kind) => [fieldOf(kind), kind] as const));
  const kinds = request.eventKinds
    .slice(0, eventKinds.length)
    .map((kind, index) =>
      checks.choice(`event_kinds[${index}]`, kind, choices, listOf(Object.keys(choices))),
    );
  const labels = checks.labels('labels', request.labels);
  // A wrong key is not repeated in the error: it may be the right one with a typing mistake.
  if (request.secret !== '' && readSecret(request.secret) === undefined)
    checks.add('secret', 'whsec_ and 24 to 64 bytes in base64');
  checks.throwIfWrong();

  const secret = request.secret || newSecret();
  const chosen = kinds.length === 0 ? defaultEventKinds : eventKinds.filter((kind) => kinds.includes(kind));
  const created = await webhooks.create(
    {
      tenant,
      name,
      owner,
      url: url!.href,
      secret,
      eventKinds: chosen satisfies readonly EventKind[],
      labels,
    },
    config.webhooksMax,
  );
  if (created === 'conflict') throw new ServiceError('WEBHOOK_EXISTS', { webhookId: name });
  if (created === 'tooMany') throw new ServiceError('TOO_MANY_WEBHOOKS', { webhooksMax: config.webhooksMax });
  return { webhook: toWebhook(await webhooks.summary(created)), secret };
}

async function requireWebhook(webhooks: WebhookStore, webhookId: string): Promise<Webhook> {
  const webhook = await webhooks.find(webhookId);
  if (webhook === undefined) throw notFound(webhookId);
  return webhook;
}

function notFound(webhookId: string): ServiceError {
  return new ServiceError('WEBHOOK_NOT_FOUND', { webhookId: nameOf(webhookId) });
}

/** Without its key. */
function toWebhook({ webhook, pendingCount, deadCount }: WebhookSummary): WebhookProto {
  return {
    name: `webhooks/${webhook.name}`,
    url: webhook.url,
    eventKinds: webhook.eventKinds.map(fieldOf),
    labels: webhook.labels,
    createTime: new Date(webhook.createTimeMs),
    pendingCount,
    deadCount,
    lastSuccessTime: toDate(webhook.lastSuccessTimeMs),
    lastFailure: webhook.lastFailure,
  };
}
