// The batch files of the section of jobs: how far each has come, its output, and the end of one.
import { html, useEffect, useState } from "./vendor/preact-htm.js";
import { ask, hasKey, number, request } from "./shared.js";

const AGAIN_MS = 3000;
const MOST = 5;
const MOST_MIB = 256; // of a file that passes through the page
const when = (at_ms) => new Date(at_ms).toLocaleString("en", { month: "short", day: "numeric", hour: "numeric", minute: "2-digit", hour12: false });
const isOpen = (batch) => batch.status === "waiting" || batch.status === "running";
const path = (batch) => `batches/${batch.id}`;

/** Hand over a file as a download. A link cannot send the key, so with a key the page fetches the file itself. */
async function download(file) {
  const stop = new AbortController();
  const answer = await request(file, { signal: stop.signal });
  if (answer.headers.get("Content-Length") > MOST_MIB * 2 ** 20) {
    stop.abort();
    throw new Error(`The file is larger than ${MOST_MIB} MiB, the most that this page downloads with a key. In a shell: `
      + `curl -OJ -H 'Authorization: Bearer KEY' '${new URL(file, document.baseURI).href}'`);
  }
  const url = URL.createObjectURL(await answer.blob());
  const [, name] = answer.headers.get("Content-Disposition").match(/filename="(.+)"/);
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000); // a browser may read it after the click
}

export function BatchFiles() {
  const [batches, setBatches] = useState([]);
  const [error, setError] = useState("");
  const [fetched, setFetched] = useState(""); // the file that is on its way
  const read = () => ask(`batches?limit=${MOST}`).then((said) => setBatches(said.batches), () => {});
  useEffect(() => {
    read();
    const timer = setInterval(() => { if (!document.hidden) read(); }, AGAIN_MS);
    return () => clearInterval(timer);
  }, []);
  const cancel = (batch) => ask(path(batch), { method: "DELETE" }).then(() => { setError(""); read(); }, (failed) => setError(failed.message));
  const save = (event) => {
    if (!hasKey()) return;
    event.preventDefault();
    const file = event.currentTarget.getAttribute("href");
    setFetched(file);
    download(file).then(() => setError(""), (failed) => setError(failed.message)).finally(() => setFetched(""));
  };
  const link = (batch, kind) => html`<a href=${`${path(batch)}/${kind.toLowerCase()}`} download onClick=${save}>${kind}</a>`;
  if (!batches.length) return null;
  return html`<h2 id="batches">Last batch files</h2>
    ${error && html`<p class="card banner long" role="alert">${error}</p>`}
    <p class="muted none" aria-live="polite">${fetched && `Fetching ${fetched} …`}</p>
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
          ${batch.output_url && link(batch, "Output")} ${batch.output_url && batch.rows_failed > 0 && link(batch, "Errors")}</td></tr>`)}</tbody></table></div>`;
}
