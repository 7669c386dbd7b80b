import type { AuditLog } from '../audit/auditLog.js';
import { ServiceError } from '../errors.js';
import type { CallContext, Implementation, ServiceDefinition } from '../grpc/service.js';

/** Fields that requests and answers of changes share; each may be absent. */
interface Named {
  name?: string;
  job?: string | Named;
  requestId?: string;
  validateOnly?: boolean;
  artifact?: Named;
  dataset?: Named;
  weights?: Named;
  webhook?: Named;
}

/**
 * Wraps a service so that every call with one answer that `isChange` selects is recorded in the audit log once it is answered, whether it
 * succeeded or not. Calls that the role forbids never get here: they are in the log of calls.
 */
export function audited<Definition extends ServiceDefinition>(
  definition: Definition,
  implementation: Implementation<Definition>,
  isChange: (method: string) => boolean,
  audit: Pick<AuditLog, 'note'>,
): Implementation<Definition> {
  const handlers = implementation as Record<string, (request: Named, context: CallContext) => unknown>;
  const noted = Object.entries(definition.methods)
    .filter(([key, { responseStream }]) => !responseStream && isChange(key))
    .map(([key, { name, requestStream }]) => {
      const method = `${definition.fullName.replace(/^.*\./, '')}/${name}`;
      const handle = async (request: Named, context: CallContext): Promise<unknown> => {
        const asked = requestStream ? {} : request;
        const note = async (result: string, answer: Named): Promise<void> => {
          if (asked.validateOnly === true) return;
          await audit.note({
            caller: context.caller.name,
            tenant: context.caller.tenant,
            peer: context.peer,
            method,
            resource: nameIn(answer) || nameIn(asked),
            request_id: asked.requestId ?? '',
            result,
          });
        };
        try {
          const answer = (await handlers[key]!.call(implementation, request, context)) as Named;
          await note('OK', answer);
          return answer;
        } catch (error) {
          await note(error instanceof ServiceError ? error.reason : 'INTERNAL_ERROR', {});
          throw error;
        }
      };
      return [key, handle];
    });
  return { ...implementation, ...Object.fromEntries(noted) } as Implementation<Definition>;
}

function nameIn({ name, job, artifact, dataset, weights, webhook }: Named): string {
  const found = artifact ?? dataset ?? weights ?? webhook ?? (typeof job === 'object' ? job : undefined);
  return found?.name ?? name ?? (typeof job === 'string' ? job : '');
}
