// The section of the pool: its workers, where their environments differ from what their models ask for, and links.
import { html, useEffect, useState } from "./vendor/preact-htm.js";
import { ask, number, startFailure, title } from "./shared.js";

const AGAIN_MS = 5000;
const FIGURES = new Set(["Process", "Memory, MiB", "Up", "Jobs done", "Failed", "Batch mean"]);

/** The page of a version in MLflow's own user interface. */
const mlflowPage = (mlflow, row) => `${mlflow}/#/models/${encodeURIComponent(row.model_name)}/versions/${row.model_version}`;

/** What the controller finds in Redis, read while the section is shown. */
function useFindings() {
  const [found, setFound] = useState([]);
  useEffect(() => {
    const read = () => { if (!document.hidden) ask("findings").then((said) => setFound(said.findings), () => {}); };
    read();
    const timer = setInterval(read, AGAIN_MS);
    return () => clearInterval(timer);
  }, []);
  return found.map((each) => [each.subject, each.detail]);
}

/** What needs an operator's attention, a line each. */
function findings(rows) {
  const found = [];
  for (const row of rows) {
    if (row.excluded) found.push([title(row), `${row.excluded.replace("_", " ")}: ${row.excluded_why}`]);
    else if (row.circuit_open) found.push([title(row), "its jobs keep failing, and no other version of the model is ready"]);
    if (!row.live_workers && row.backlog_jobs) found.push([title(row), `no worker is ready, and ${number(row.backlog_jobs)} jobs wait`]);
    if (row.metric_value == null && row.live_workers) found.push([title(row), `no ${row.metric} is logged: it is chosen after all versions with one`]);
    if (row.start_failure) found.push([title(row), startFailure(row)]);
    for (const each of row.replicas) {
      for (const said of each.warnings) found.push([each.worker_id, said]);
      if (each.unreadable) found.push([each.worker_id, `${number(each.unreadable)} messages or batches could not be read`]);
    }
  }
  return found;
}

export function Pool({ pool, rows }) {
  const { mlflow, flower, prometheus } = pool.links;
  const replicas = rows.flatMap((row) => row.replicas.map((each) => ({ row, each })));
  const differing = replicas.flatMap(({ row, each }) => each.requirements.map((one) => ({ row, each, one })));
  const found = [...findings(rows), ...useFindings()];
  const age = (at) => `${number(Math.max(0, (Date.now() - at) / 1000) / 60, 0)} min`;
  return html`<h2 id="findings">Findings</h2>
    <div class="card">${found.length
      ? html`<ul class="plain">${found.map(([where, said]) => html`<li key=${where + said}>⚠ <b>${where}</b>: ${said}</li>`)}</ul>`
      : html`<p class="none">✓ Every version is in service, and no worker reports a problem.</p>`}
      <p class="muted none"><code>modelyard doctor</code> reads all data in Redis as well, and mends what is lost, stuck or stale.</p></div>
    <h2 id="workers">Workers</h2><div class="card scroll" tabindex="0" role="region" aria-labelledby="workers"><table class="fold">
    <thead><tr>${["Version", "State", "Host", "Process", "Device", "Memory, MiB", "Up", "Jobs done", "Failed", "Batch mean", "Model"].map((name) =>
      html`<th scope="col" class=${FIGURES.has(name) ? "n" : ""}>${name}</th>`)}</tr></thead>
    <tbody>${replicas.map(({ row, each }) => html`<tr key=${each.worker_id}>
      <td><span class="name">${mlflow ? html`<a href=${mlflowPage(mlflow, row)}><b>${title(row)}</b></a>` : html`<b>${title(row)}</b>`}</span>
        ${each.follows && html`<span class="why">follows ${each.follows}</span>`}</td>
      <td data-label="State"><span class="tag ${each.state}">${each.state}</span></td>
      <td data-label="Host">${each.host}</td><td class="n" data-label="Process">${each.pid}</td><td data-label="Device">${each.device}</td>
      <td class="n" data-label="Memory, MiB">${number(each.memory_bytes ? each.memory_bytes / 2 ** 20 : null)}</td>
      <td class="n" data-label="Up">${age(each.started_at_ms)}</td><td class="n" data-label="Jobs done">${number(each.jobs_done)}</td>
      <td class="n" data-label="Failed">${number(each.jobs_failed)}</td><td class="n" data-label="Batch mean">${number(each.batch_samples_mean, 1)}</td>
      <td data-label="Model" class="long"><small>${each.model_id || "–"}</small><span class="why">${each.registry}</span></td></tr>`)}
    </tbody></table>${!replicas.length && html`<p>No worker runs. Start one with <code>modelyard worker</code>.</p>`}</div>
    ${differing.length > 0 && html`<h2 id="packages">Packages that differ</h2>
      <div class="card scroll" tabindex="0" role="region" aria-labelledby="packages"><table class="fold">
      <thead><tr>${["Version", "Worker", "Package", "Model asks for", "Installed"].map((name) => html`<th scope="col">${name}</th>`)}</tr></thead>
      <tbody>${differing.map(({ row, each, one }) => html`<tr key=${each.worker_id + one.package}>
        <td><b class="name">${title(row)}</b></td><td data-label="Worker">${each.worker_id}</td><td data-label="Package">${one.package}</td>
        <td data-label="Model asks for">${one.required || "any"}</td><td data-label="Installed">${one.installed ?? "missing"}</td></tr>`)}</tbody></table></div>`}
    <h2>Elsewhere</h2>
    <p class="row">${mlflow && html`<a href=${mlflow}>MLflow</a>`} ${flower && html`<a href=${flower}>Flower</a>`}
      ${prometheus && html`<a href=${prometheus}>Prometheus</a>`}
      <a href="docs">API documentation</a> <a href="metrics">Metrics</a></p>`;
}
