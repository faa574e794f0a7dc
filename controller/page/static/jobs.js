// The section of jobs: lists by filters that stand in the address, the timeline of one job, cancel and resend.
import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { BatchFiles } from "./batches.js";
import { ask, hasKey, ms, number, title } from "./shared.js";

const STATUSES = {
  finished: "finished", open: "waiting or running", queued: "waiting", running: "running",
  succeeded: "succeeded", failed: "failed", expired: "expired", cancelled: "cancelled",
};
const QUARANTINED = "job_quarantined";
const SPANS_S = { "": "any time", 60: "the last minute", 900: "the last 15 minutes", 3600: "the last hour" };
const PAGE = 25;
const AGAIN_MS = 3000; // between two readings of the first page, while it is shown

/** The filters in the address, such as `#jobs?status=failed`. */
const filters = () => Object.fromEntries(new URLSearchParams(location.hash.split("?")[1] ?? ""));

/** The query of `GET /jobs` for filters. */
function query({ within, version, quarantined, ...rest }, cursor) {
  const [model, number_] = (version ?? "").split("\n");
  const wanted = { limit: PAGE, ...rest, ...(version ? { model, version: number_ } : {}), ...(cursor ? { cursor } : {}) };
  if (within) wanted.since_ms = Date.now() - within * 1000;
  return new URLSearchParams(wanted);
}

const when = (at_ms) => new Date(at_ms).toLocaleTimeString("en", { hour12: false });
const isOpen = (job) => job.status === "queued" || job.status === "running";

export function Jobs({ pool, rows }) {
  const [wanted, setWanted] = useState(filters());
  const [state, setState] = useState({ jobs: null, next: "", error: "" });
  const [chosen, setChosen] = useState(null);
  const [marked, setMarked] = useState(new Set());
  const [said, setSaid] = useState("");
  const pages = useRef(1);
  const opener = useRef(null);
  useEffect(() => {
    const turn = () => setWanted(filters());
    addEventListener("hashchange", turn);
    return () => removeEventListener("hashchange", turn);
  }, []);
  const read = async (cursor) => {
    try {
      const page = await ask(`jobs?${query(wanted, cursor)}`);
      setState((old) => ({ jobs: cursor ? [...old.jobs, ...page.jobs] : page.jobs, next: page.next ?? "", error: "" }));
    } catch (error) {
      setState((old) => ({ ...old, error: error.message }));
    }
  };
  const address = JSON.stringify(wanted);
  useEffect(() => {
    pages.current = 1;
    setMarked(new Set());
    read("");
    // Later pages would move under the reader: only the first page is read again.
    const timer = setInterval(() => { if (!document.hidden && pages.current === 1) read(""); }, AGAIN_MS);
    return () => clearInterval(timer);
  }, [address]);
  const want = (more) => {
    const left = Object.entries({ ...wanted, ...more }).filter(([, value]) => value);
    location.hash = `jobs?${new URLSearchParams(left)}`;
  };
  const open = (job, event) => { opener.current = event.currentTarget; setChosen(job); };
  const close = () => { setChosen(null); opener.current?.focus(); };
  const more = () => { pages.current += 1; read(state.next); };
  const mark = (id) => setMarked((old) => { const next = new Set(old); if (!next.delete(id)) next.add(id); return next; });
  const act = async (jobs, verb, path, method) => {
    const results = await Promise.allSettled(jobs.map((job) => ask(path(job), { method })));
    const refused = results.filter((each) => each.reason);
    setSaid(`${jobs.length - refused.length} of ${jobs.length} ${verb}${refused.length ? `; ${refused[0].reason.message}` : ""}`);
    setMarked(new Set());
    pages.current = 1;
    read("");
  };
  const cancel = (jobs) => act(jobs, "cancelled", (job) => `results/${job.id}`, "DELETE");
  const resend = (jobs) => act(jobs, "sent again", (job) => `quarantine/${job.id}/resend`, "POST");
  const shown = state.jobs ?? [];
  const picked = shown.filter((job) => marked.has(job.id));
  const waiting = picked.filter((job) => job.status === "queued");
  const quarantined = picked.filter((job) => job.error_code === QUARANTINED);
  return html`${pool.links.batches && html`<${BatchFiles} />`}
    <${Filters} wanted=${wanted} want=${want} rows=${rows} />
    ${state.error && html`<p class="card banner" role="alert">${state.error}</p>`}
    ${chosen && html`<${Details} listed=${shown.find((job) => job.id === chosen.id) ?? chosen} jobs=${state.jobs} onCancel=${cancel} onResend=${resend}
      onClose=${close} />`}
    <p class="row" aria-live="polite">
      ${picked.length > 0 && html`<span>${number(picked.length)} chosen</span>
        <button disabled=${!waiting.length} onClick=${() => cancel(waiting)}>Cancel ${waiting.length}</button>
        <button disabled=${!quarantined.length} onClick=${() => resend(quarantined)}>Resend ${quarantined.length}</button>`}
      ${said && html`<span class="muted">${said}</span>`}</p>
    ${!state.jobs ? html`<p class="card muted">Reading the jobs …</p>` : !shown.length
      ? html`<p class="card muted">${state.next ? "None of the oldest jobs is on this list. More follow." : `No job is on this list. ${
          wanted.status === "open" || !wanted.status ? "" : "Other filters may show some."}`}</p>`
      : html`<${Table} jobs=${shown} marked=${marked} mark=${mark} chosen=${chosen} choose=${open} />`}
    ${state.next && html`<p><button onClick=${more}>Show more</button></p>`}`;
}

function Filters({ wanted, want, rows }) {
  const choose = (name) => (event) => want({ [name]: event.target.value });
  return html`<form class="row card filters" aria-label="Filters" onSubmit=${(event) => event.preventDefault()}>
    <label>Jobs <select value=${wanted.status ?? "finished"} onChange=${choose("status")}>
      ${Object.entries(STATUSES).map(([name, label]) => html`<option key=${name} value=${name}>${label}</option>`)}</select></label>
    <label>of <select value=${wanted.version ?? ""} onChange=${choose("version")}>
      <option value="">all versions</option>
      ${rows.map((row) => html`<option key=${row.worker} value=${`${row.model_name}\n${row.model_version}`}>${title(row)}</option>`)}</select></label>
    <label>within <select value=${wanted.within ?? ""} onChange=${choose("within")}>
      ${Object.entries(SPANS_S).map(([seconds, label]) => html`<option key=${seconds} value=${seconds}>${label}</option>`)}</select></label>
    <label>slower than <input type="number" min="0" step="any" size="6" value=${wanted.min_ms ?? ""} onChange=${choose("min_ms")} /> ms</label>
    <label><input type="checkbox" checked=${wanted.min_attempts === "2"}
      onChange=${(event) => want({ min_attempts: event.target.checked ? "2" : "" })} /> retried</label>
    <label><input type="checkbox" checked=${wanted.code === QUARANTINED}
      onChange=${(event) => want(event.target.checked ? { code: QUARANTINED, status: "failed" } : { code: "" })} /> quarantined</label>
  </form>`;
}

function Table({ jobs, marked, mark, chosen, choose }) {
  return html`<div class="card scroll" tabindex="0" role="region" aria-label="Jobs"><table class="fold">
    <caption class="visually-hidden">Jobs</caption>
    <thead><tr><th scope="col">Job</th><th scope="col">Version</th>
      <th scope="col">Status</th><th scope="col">Arrived</th><th scope="col" class="n">Attempts</th>
      <th scope="col" class="n">Waited, ms</th><th scope="col" class="n">Inference, ms</th><th scope="col" class="n">In all, ms</th></tr></thead>
    <tbody>${jobs.map((job) => html`<tr key=${job.id} class=${chosen?.id === job.id ? "chosen" : ""}>
      <td class="pick"><input type="checkbox" aria-label="Choose job ${job.id}" checked=${marked.has(job.id)} onChange=${() => mark(job.id)} />
        <button class="link" onClick=${(event) => choose(job, event)}>${job.id}</button></td>
      <td data-label="Version"><span class="name">${title(job)}</span></td>
      <td data-label="Status"><span class="tag ${job.status}">${job.status}</span>${job.error_code && html`<span class="why">${job.error_code}</span>`}</td>
      <td data-label="Arrived">${when(job.received_at_ms)}</td>
      <td class="n" data-label="Attempts">${number(job.attempts)}</td>
      <td class="n" data-label="Waited, ms">${ms(job.queue_wait_ms)}</td>
      <td class="n" data-label="Inference, ms">${ms(job.inference_ms)}</td>
      <td class="n" data-label="In all, ms">${ms(job.end_to_end_ms)}</td></tr>`)}</tbody></table></div>`;
}

/** One job: its times as bars, its receipt, and the calls that read it. An open job is read again with the list, which it may leave. */
function Details({ listed, jobs, onCancel, onResend, onClose }) {
  const place = useRef(null);
  const [document_, setDocument] = useState(null);
  const job = document_?.id === listed.id ? { ...listed, ...document_ } : listed;
  useEffect(() => place.current?.focus(), [job.id]);
  useEffect(() => {
    if (document_?.id === job.id && !isOpen(document_)) return;
    ask(`results/${job.id}`).then(setDocument, (error) => setDocument({ detail: error.message }));
  }, [job.id, jobs]);
  const ran = job.queue_wait_ms != null && job.end_to_end_ms > job.queue_wait_ms;
  const batch = ran ? job.end_to_end_ms - job.queue_wait_ms : null;
  const steps = [
    ["waited in the queue", 0, job.queue_wait_ms ?? 0],
    ["in its batch", job.queue_wait_ms ?? 0, batch ?? 0],
    ["inference", (job.queue_wait_ms ?? 0) + Math.max(0, (batch ?? 0) - (job.inference_ms ?? 0)) / 2, job.inference_ms ?? 0],
  ];
  const whole = Math.max(job.end_to_end_ms, 1e-6);
  const url = new URL(`results/${job.id}`, document.baseURI).href;
  return html`<section class="card details" ref=${place} tabindex="-1" aria-label="Job ${job.id}"
    onKeyDown=${(event) => event.key === "Escape" && onClose()}>
    <div class="row spread"><h2 style=${{ margin: 0 }}>Job <code>${job.id}</code></h2><div class="row">
      ${job.status === "queued" && html`<button onClick=${() => onCancel([job])}>Cancel</button>`}
      ${job.error_code === QUARANTINED && html`<button onClick=${() => onResend([job])}>Resend</button>`}
      <button onClick=${onClose}>Close</button></div></div>
    <p>${title(job)}, <span class="tag ${job.status}">${job.status}</span> ${job.forced ? "named by its request" : `chosen by ${job.policy}`}${"; "}
      ${number(job.n_samples)} ${job.n_samples === 1 ? "sample" : "samples"}${job.batch_samples ? ` of ${number(job.batch_samples)} in its batch` : ""},
      attempt ${number(job.attempts)}${job.worker_id ? ` by ${job.worker_id}` : ""}${job.caller ? `, of ${job.caller}` : ""}.
      Arrived ${when(job.received_at_ms)}${isOpen(job) ? `, expires ${when(job.deadline_ms)}` : ""}.</p>
    <div class="timeline" role="img" aria-label=${steps.map(([name, , took]) => `${name} ${ms(took)} ms`).join(", ")}>
      ${steps.map(([name, start, took]) => html`<span key=${name}>${name}</span>
        <div class="span"><i style=${{ left: `${(start / whole) * 100}%`, width: `${Math.min(100, (took / whole) * 100)}%` }}></i></div>
        <span class="n">${ms(took)} ms</span>`)}</div>
    <details open><summary>Receipt and outcome</summary><pre>${document_ ? JSON.stringify(document_, null, 1) : "…"}</pre></details>
    <details><summary>Calls</summary><pre>${`curl ${hasKey() ? '-H "Authorization: Bearer $MODELYARD_API_KEY" ' : ""}'${url}'\n\nfrom modelyard import Client\n\nprint(Client("${new URL(".", document.baseURI).href}").result("${job.id}"))`}</pre></details>
  </section>`;
}
