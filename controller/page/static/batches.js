// The batch files of the section of jobs: how far each has come, its output, and the end of one.
import { html, useEffect, useState } from "./vendor/preact-htm.js";
import { ask, hasKey, number } from "./shared.js";

const AGAIN_MS = 3000;
const MOST = 5;
const when = (at_ms) => new Date(at_ms).toLocaleString("en", { month: "short", day: "numeric", hour: "numeric", minute: "2-digit", hour12: false });
const isOpen = (batch) => batch.status === "waiting" || batch.status === "running";
const path = (batch) => `batches/${batch.id}`;

export function BatchFiles() {
  const [batches, setBatches] = useState([]);
  const [error, setError] = useState("");
  const read = () => ask(`batches?limit=${MOST}`).then((said) => setBatches(said.batches), () => {});
  useEffect(() => {
    read();
    const timer = setInterval(() => { if (!document.hidden) read(); }, AGAIN_MS);
    return () => clearInterval(timer);
  }, []);
  const cancel = (batch) => ask(path(batch), { method: "DELETE" }).then(() => { setError(""); read(); }, (failed) => setError(failed.message));
  if (!batches.length) return null;
  return html`<h2 id="batches">Last batch files</h2>
    ${error && html`<p class="card banner" role="alert">${error}</p>`}
    <div class="card scroll" tabindex="0" role="region" aria-labelledby="batches"><table class="fold">
      <thead><tr><th scope="col">Batch</th><th scope="col">Status</th><th scope="col">Arrived</th><th scope="col">Progress</th>
        <th scope="col" class="n">Rows</th><th scope="col" class="n">Set aside</th><th scope="col" class="n">Rows/s</th>
        <th scope="col"><span class="visually-hidden">Output or cancel</span></th></tr></thead>
      <tbody>${batches.map((batch) => html`<tr key=${batch.id}>
        <td><code>${batch.id}</code>${batch.error && html`<span class="why">⚠ ${batch.error.detail}</span>`}</td>
        <td data-label="Status"><span class="tag ${batch.status}">${batch.status}</span></td>
        <td class="when" data-label="Arrived">${when(batch.created_at_ms)}</td>
        <td data-label="Progress"><progress max="1" value=${batch.progress} aria-label="Progress of batch ${batch.id}"></progress> ${number(batch.progress * 100)} %</td>
        <td class="n" data-label="Rows">${number(batch.rows_done)}${batch.rows == null ? "" : ` of ${number(batch.rows)}`}</td>
        <td class="n" data-label="Set aside">${number(batch.rows_failed)}</td>
        <td class="n" data-label="Rows/s">${number(batch.rows_per_s)}</td>
        <td>${isOpen(batch) && html`<button onClick=${() => cancel(batch)}>Cancel</button>`}
          ${batch.output_url && !hasKey() && html`<a href=${`${path(batch)}/output`} download>Output</a>`}
          ${batch.output_url && !hasKey() && batch.rows_failed > 0 && html` <a href=${`${path(batch)}/errors`} download>Errors</a>`}</td></tr>`)}</tbody></table></div>`;
}
