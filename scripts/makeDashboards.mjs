// Writes the dashboards of deploy/grafana: `node scripts/makeDashboards.mjs`. Uses the builders of Grafana's foundation SDK, whose types
// are generated from Grafana's schema; test/deploy.test.ts checks that the file is up to date.
import { writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as common from '@grafana/grafana-foundation-sdk/common';
import * as dashboards from '@grafana/grafana-foundation-sdk/dashboard';
import { DataqueryBuilder } from '@grafana/grafana-foundation-sdk/prometheus';
import { PanelBuilder as StatBuilder } from '@grafana/grafana-foundation-sdk/stat';
import { PanelBuilder as CurveBuilder } from '@grafana/grafana-foundation-sdk/timeseries';
import { format, resolveConfig } from 'prettier';

const source = { type: 'prometheus', uid: '${datasource}' };
const ofJob = (name) => `${name}{job_id=~"$job_id"}`;
const quantile = (share, name, range, by = 'le') =>
  `histogram_quantile(${share}, sum by (${by}) (rate(${name}_bucket[${range}])))`;

/** Queries with their legends. */
const medianAnd95 = (name, range) => [
  [quantile(0.5, name, range), 'median'],
  [quantile(0.95, name, range), '95 %'],
];
const job = '{{job_id}}';
const jobAndModule = '{{job_id}} {{module}}';

/** Rows of panels: title, unit, queries, and differences from other panels. */
const rows = {
  Now: [
    ['Jobs running', 'short', [['relora_slots_in_use', 'running']], { stat: true }],
    ['Jobs waiting', 'short', [['relora_jobs{state="queued"}', 'queued']], { stat: true }],
    ['Tokens a second', 'short', [['sum(rate(relora_tokens_total[1m]))', 'all jobs']], { stat: true }],
    [
      'Restarts in an hour',
      'short',
      [['increase(relora_restarts_total[1h])', 'restarts']],
      { stat: true, decimals: 0 },
    ],
    [
      'Failed in a day',
      'short',
      [['increase(relora_jobs_finished_total{outcome="failed"}[1d])', 'failed']],
      { stat: true, decimals: 0 },
    ],
    ['Free disk', 'bytes', [['relora_disk_free_bytes', 'data folder']], { stat: true }],
  ],
  Training: [
    [
      'Loss',
      'short',
      [
        [ofJob('relora_job_loss_smoothed'), job],
        [ofJob('relora_job_evaluation_loss'), `${job} held out`],
      ],
      { width: 12, height: 9, decimals: 3, about: 'Nats per token. Dashed marks are restarts.' },
    ],
    [
      'Learning rate',
      'sci',
      [[ofJob('relora_job_learning_rate'), job]],
      { width: 12, height: 9, about: 'Falls to zero and climbs again at each restart.' },
    ],
    ['Tokens a second', 'short', [[ofJob('relora_job_tokens_per_second'), job]]],
    [
      'Gradient norm',
      'short',
      [[ofJob('relora_job_gradient_norm'), job]],
      { log: true, about: 'Before clipping.' },
    ],
    ['Progress', 'percentunit', [[`${ofJob('relora_job_step')} / ${ofJob('relora_job_steps')}`, job]]],
    ['Time of a step', 's', medianAnd95('relora_step_seconds', '2m')],
    [
      'Memory',
      'bytes',
      [
        [ofJob('relora_job_resident_bytes'), job],
        ['relora_server_resident_bytes', 'service'],
      ],
    ],
    [
      'Steps skipped',
      'short',
      [['increase(relora_steps_skipped_total[5m])', 'not finite']],
      { about: 'Loss or gradient was not finite.' },
    ],
  ],
  Restarts: [
    [
      'Effective rank',
      'short',
      [[ofJob('relora_job_effective_rank'), job]],
      { width: 6, about: 'Of the whole change since the adapters began; each restart should raise it.' },
    ],
    ['Merged norm', 'short', [[ofJob('relora_job_merge_delta_norm'), job]], { width: 6 }],
    [
      'Error of the merge',
      'sci',
      [
        [ofJob('relora_job_merge_logit_change'), job],
        [ofJob('relora_job_merge_logit_tolerance'), `${job} tolerance`],
      ],
      {
        width: 6,
        about:
          'Largest change of a logit on a probe batch, and what rounding explains: above it the job fails.',
      },
    ],
    ['Moments at zero', 'percentunit', [[ofJob('relora_job_moments_zeroed_ratio'), job]], { width: 6 }],
    [
      'Effective rank by kind of layer',
      'short',
      [[ofJob('relora_job_module_effective_rank'), jobAndModule]],
      { width: 6, about: 'Mean over the layers of a kind, of their change since the adapters began.' },
    ],
    [
      'Singular values above 1 %',
      'short',
      [[ofJob('relora_job_module_singular_values'), jobAndModule]],
      { width: 6, about: 'Mean number of them by kind of layer, of the change since the adapters began.' },
    ],
    [
      'Merged norm by kind of layer',
      'short',
      [[ofJob('relora_job_module_merge_delta_norm'), jobAndModule]],
      { width: 6, about: 'Frobenius norm of what the last restart merged.' },
    ],
    [
      'Loss on the probe batch',
      'short',
      [
        [ofJob('relora_job_merge_loss_before'), `${job} before`],
        [ofJob('relora_job_merge_loss_after'), `${job} after`],
      ],
      { width: 6, about: 'Just before and just after the last merge: the same but for rounding.' },
    ],
  ],
  'Queue and checkpoints': [
    ['Jobs by state', 'short', [['relora_jobs', '{{state}}']], { fill: 10 }],
    ['Wait in the queue', 's', medianAnd95('relora_queue_wait_seconds', '15m')],
    [
      'Age of the newest checkpoint',
      's',
      [[`time() - ${ofJob('relora_job_checkpoint_timestamp_seconds')}`, job]],
    ],
    ['Time of saving', 's', [[quantile(0.95, 'relora_checkpoint_seconds', '30m'), '95 %']]],
    ['Size of a checkpoint', 'bytes', [[ofJob('relora_job_checkpoint_bytes'), job]]],
    [
      'Attempts and crashes',
      'short',
      [
        ['increase(relora_attempts_total[15m])', 'attempts'],
        ['increase(relora_trainer_crashes_total[15m])', 'crashes'],
      ],
    ],
  ],
  Service: [
    [
      'Calls a second',
      'short',
      [['sum by (method, code) (rate(relora_rpc_handled_total[1m]))', '{{method}} {{code}}']],
    ],
    [
      'Time of calls, 95 %',
      's',
      [
        [
          'histogram_quantile(0.95, sum by (le, method) (rate(relora_rpc_seconds_bucket{method!~"WatchJob|Watch|ServerReflectionInfo"}[5m])))',
          '{{method}}',
        ],
      ],
    ],
    ['Watches', 'short', [['relora_watchers', 'open']]],
    ['Store, 95 %', 's', [[quantile(0.95, 'relora_store_statement_seconds', '5m'), 'statement']]],
    ['Event loop lag', 's', [['relora_event_loop_lag_seconds', '99 %']]],
    [
      'Bytes a second',
      'Bps',
      [
        ['rate(relora_artifact_sent_bytes_total[1m])', 'sent'],
        ['rate(relora_dataset_received_bytes_total[1m])', 'received'],
      ],
    ],
    [
      'Webhooks',
      'short',
      [
        ['rate(relora_webhook_delivered_total[5m])', 'delivered a second'],
        ['rate(relora_webhook_failures_total[5m])', 'failed a second'],
        ['relora_webhook_pending', 'waiting'],
        ['increase(relora_webhook_dead_letters_total[1h])', 'given up in an hour'],
      ],
    ],
    ['Webhooks: time of a message', 's', medianAnd95('relora_webhook_seconds', '5m')],
    [
      'Trackers',
      'short',
      [
        ['rate(relora_tracker_writes_total[5m])', '{{tracker}} a second'],
        ['rate(relora_tracker_failures_total[5m])', '{{tracker}} failed a second'],
      ],
      { about: 'Batches of events for TensorBoard and MLflow.' },
    ],
    [
      'Cards: use and throttling',
      'percentunit',
      [
        ['relora_card_utilization_ratio', '{{uuid}}'],
        ['max by (uuid, cause) (relora_card_throttled)', '{{uuid}} throttled: {{cause}}'],
      ],
      { decimals: 3, about: 'Empty without a card that answers.' },
    ],
    [
      'Cards: memory',
      'bytes',
      [
        ['relora_card_memory_used_bytes', '{{uuid}}'],
        ['relora_card_memory_bytes', '{{uuid}} in all'],
      ],
      { decimals: 3, about: 'Of all programs on the card.' },
    ],
    [
      'Cards: temperature and power',
      'none',
      [
        ['relora_card_temperature_celsius', '{{uuid}} °C'],
        ['relora_card_power_watts', '{{uuid}} W'],
      ],
      { decimals: 3, about: 'Of the chip, and of the whole card.' },
    ],
  ],
};

/** The dashboard in Grafana's format. */
export function makeDashboard() {
  const builder = new dashboards.DashboardBuilder('ReLoRA training')
    .uid('relora')
    .tags(['relora'])
    .readonly()
    .refresh('5s')
    .time({ from: 'now-1h', to: 'now' })
    .timezone('browser')
    .tooltip(dashboards.DashboardCursorSync.Crosshair)
    .withVariable(
      new dashboards.DatasourceVariableBuilder('datasource')
        .label('Data source')
        .type('prometheus')
        .current({ text: 'Prometheus', value: 'relora-prometheus' }),
    )
    .withVariable(
      new dashboards.QueryVariableBuilder('job_id')
        .label('Job')
        .datasource(source)
        .query({ query: 'label_values(relora_job_steps, job_id)', refId: 'jobs' })
        .refresh(dashboards.VariableRefresh.OnTimeRangeChanged)
        .includeAll(true)
        .multi(true)
        .current({ text: 'All', value: '$__all' }),
    )
    .annotation(
      mark(
        'Restarts',
        'orange',
        `changes(${ofJob('relora_job_restarts')}[10s]) > 0`,
        'Restart of {{job_id}}',
      ),
    )
    .annotation(
      mark('Trainer crashes', 'red', 'changes(relora_trainer_crashes_total[10s]) > 0', 'A trainer crashed'),
    );
  let id = 0;
  let y = 0;
  for (const [title, panels] of Object.entries(rows)) {
    builder.withRow(new dashboards.RowBuilder(title).id(++id).gridPos({ x: 0, y, w: 24, h: 1 }));
    y += 1;
    let [x, height] = [0, 0];
    for (const panel of panels) {
      const { stat = false, width: w = stat ? 4 : 8, height: h = stat ? 4 : 8 } = panel[3] ?? {};
      if (x + w > 24) [x, y, height] = [0, y + height, 0];
      builder.withPanel(toPanel(panel).id(++id).gridPos({ x, y, w, h }));
      x += w;
      height = Math.max(height, h);
    }
    y += height;
  }
  return builder.build();
}

function toPanel([title, unit, queries, { stat = false, about = '', decimals, log = false, fill = 0 } = {}]) {
  const panel = (stat ? new StatBuilder() : new CurveBuilder())
    .title(title)
    .description(about)
    .datasource(source)
    .unit(unit);
  if (decimals !== undefined) panel.decimals(decimals);
  for (const [index, [expr, legend]] of queries.entries())
    panel.withTarget(
      new DataqueryBuilder().refId('ABCDEFG'[index]).datasource(source).expr(expr).legendFormat(legend),
    );
  if (stat)
    return panel
      .reduceOptions(new common.ReduceDataOptionsBuilder().calcs(['lastNotNull']))
      .colorMode(common.BigValueColorMode.Value)
      .graphMode(common.BigValueGraphMode.Area);
  if (log)
    panel.scaleDistribution(
      new common.ScaleDistributionConfigBuilder().type(common.ScaleDistribution.Log).log(10),
    );
  return panel
    .lineWidth(2)
    .fillOpacity(fill)
    .showPoints(common.VisibilityMode.Never)
    .spanNulls(false)
    .legend(
      new common.VizLegendOptionsBuilder()
        .displayMode(common.LegendDisplayMode.List)
        .placement(common.LegendPlacement.Bottom)
        .showLegend(true),
    )
    .tooltip(new common.VizTooltipOptionsBuilder().mode(common.TooltipDisplayMode.Multi));
}

/** A line across all panels at an event. */
function mark(name, color, expr, title) {
  const annotation = new dashboards.AnnotationQueryBuilder()
    .name(name)
    .datasource(source)
    .enable(true)
    .iconColor(color)
    .expr(expr);
  return {
    build: () => ({ ...annotation.build(), step: '5s', titleFormat: title }),
  };
}

export const dashboardFile = fileURLToPath(
  new URL('../deploy/grafana/dashboards/relora.json', import.meta.url),
);

export async function dashboardText() {
  const options = await resolveConfig(dashboardFile);
  return await format(JSON.stringify(makeDashboard()), { ...options, parser: 'json' });
}

if (process.argv[1] !== undefined && resolve(process.argv[1]) === fileURLToPath(import.meta.url))
  writeFileSync(dashboardFile, await dashboardText());
