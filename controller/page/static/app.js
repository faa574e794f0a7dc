// The page of the pool: its sections, and what GET /events streams.
import { html, render, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { Jobs } from "./jobs.js";
import { Pool } from "./pool.js";
import { Try } from "./try.js";
import { Why } from "./why.js";
import { figure, halfWidth, headers, ms, number, problem, setKey, startFailure, title } from "./shared.js";

const RETRY_MS = [1000, 2000, 5000];
const STALE_MS = 5000;
const TABS = { now: "Now", jobs: "Jobs", why: "Why", try: "Try it", pool: "Pool" };
const SERIES = ["jobs_per_s", "failed_per_s", "p50_ms", "p99_ms", "batch_samples", "backlog_jobs"];
const STEP_S = { "15m": 5, "24h": 300 };
const MOST_POINTS = { "15m": 180, "24h": 288 };
const TICKS_S = [1, 2, 5, 10, 15, 30, 60, 120, 180, 240, 360].map((minutes) => minutes * 60); // labels say no seconds
/** The span that a chart shows: from its first point on, at least a fifteenth of the whole. */
const shownSpan = (first, last, whole_s) => [Math.max(last - whole_s, Math.min(first, last - whole_s / 15)), last];

const clock = (at_s) => new Date(at_s * 1000).toLocaleTimeString("en", { hour: "2-digit", minute: "2-digit", hour12: false });
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]]; // tell lines apart without colour; with six colours, twelve lines
const dash = (index) => DASHES[index % DASHES.length];
const colour = (index) => `var(--s${index % 6})`;
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Read server-sent events, with headers, which EventSource cannot send. */
async function readEvents(signal, hear) {
  const answer = await fetch("events", { headers: headers(), signal });
  if (!answer.ok) throw Object.assign(new Error((await problem(answer)).detail), { status: answer.status });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (text + value).split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const [event, data] = part.split("\ndata: ");
      hear(event.slice("event: ".length), JSON.parse(data));
    }
  }
}

/** The pool, its history and the state of the connection, kept current while the page is shown. */
function usePool(signedIn) {
  const [pool, setPool] = useState({ rows: null, rates: {}, history: {}, open: {}, links: {}, state: "connecting", error: "", at: 0 });
  useEffect(() => {
    let tries = 0, timer = 0, stop = null;
    const update = (more) => setPool((old) => ({ ...old, ...more }));
    const hear = (event, data) => {
      tries = 0;
      if (event === "history") update({ history: data });
      else if (event === "links") update({ links: data });
      else if (event === "away") update({ state: "away", error: "Redis does not answer. The figures are as last seen." });
      else {
        const { rates, closed, open } = data.newest;
        setPool((old) => ({
          ...old, rows: data.workers, rates, open, state: "live", error: "", at: Date.now(),
          history: extended(old.history, closed),
        }));
      }
    };
    const connect = async () => {
      stop = new AbortController();
      try {
        await readEvents(stop.signal, hear);
        throw new Error("The controller ended the connection.");
      } catch (error) {
        if (stop.signal.aborted) return;
        if (error.status === 401 || error.status === 403) return update({ state: "locked", error: error.message });
        const said = error instanceof TypeError ? "The controller does not answer." : error.message;
        update({ state: "away", error: `${said} The figures are as last seen; trying again.` });
        timer = setTimeout(connect, RETRY_MS[Math.min(tries++, RETRY_MS.length - 1)]);
      }
    };
    const pause = () => {
      clearTimeout(timer);
      stop?.abort();
      if (!document.hidden) connect();
    };
    document.addEventListener("visibilitychange", pause);
    connect();
    return () => { document.removeEventListener("visibilitychange", pause); clearTimeout(timer); stop?.abort(); };
  }, [signedIn]);
  return pool;
}

/** The closed points of each window with the last one that closed. */
function extended(history, closed) {
  const result = { ...history };
  for (const [name, point] of Object.entries(closed)) {
    const points = history[name] ?? [];
    if ((points.at(-1)?.[0] ?? 0) < point[0]) result[name] = [...points, point].slice(-MOST_POINTS[name]);
  }
  return result;
}

/** The points of a window; the last one may not have ended. */
function pointsOf(pool, name) {
  const closed = pool.history[name] ?? [], open = pool.open[name];
  return open?.[0] > (closed.at(-1)?.[0] ?? 0) ? [...closed, open] : closed;
}

const doneRate = (rates, row) => rates[row.worker]?.[0] ?? 0;

function stateOf(row) {
  if (row.excluded) return row.excluded.replace("_", " ");
  if (row.live_workers) return "ready";
  return row.replicas[0]?.state ?? (row.start_failure ? "failing" : "cold");
}

/** Rows by rank; versions without a ready worker come last. */
function ranked(rows) {
  return [...rows].sort((a, b) => (a.rank ?? rows.length + 1) - (b.rank ?? rows.length + 1));
}

/** Where the figure of a version comes from. */
function origin(row) {
  const where = { model: "of the model", run: "of its run", tag: "of its tag" }[row.val_accuracy_source];
  const rows = row.dataset_rows ? `, ${number(row.dataset_rows)} rows` : "";
  return where ? `${where}${row.dataset ? ` on ${row.dataset}` : ""}${rows}` : "";
}

/** The line that stands for a version in the charts. */
function Swatch({ index }) {
  return html`<svg class="swatch" viewBox="0 0 24 10" aria-hidden="true"><line x2="24" y1="5" y2="5"
    stroke=${colour(index)} stroke-width="3" stroke-dasharray=${dash(index).join(" ")} /></svg>`;
}

function Spark({ points, worker, of, label, stroke }) {
  const values = points.map((point) => point[1][worker]?.[SERIES.indexOf(of)] ?? 0);
  if (values.length < 2) return html`<span class="muted">–</span>`;
  const top = Math.max(...values, 1e-9);
  const path = values.map((v, i) => `${((i / (values.length - 1)) * 110).toFixed(1)},${(22 - (v / top) * 20).toFixed(1)}`);
  return html`<svg class="spark" viewBox="0 0 110 24" role="img" aria-label=${label}>
    <polyline points=${path.join(" ")} fill="none" stroke=${stroke} stroke-width="1.6" /></svg>`;
}

function Versions({ rows, rates, points }) {
  const total = rows.reduce((sum, row) => sum + doneRate(rates, row), 0);
  return html`<div class="card scroll" tabindex="0" role="region" aria-label="Versions"><table class="fold">
    <caption class="visually-hidden">Model versions, best first</caption>
    <thead><tr><th scope="col">Version</th><th scope="col">State</th><th scope="col" class="n">val_accuracy</th>
      <th scope="col" class="n">Share</th><th scope="col" class="n">Jobs/s</th>
      <th scope="col" class="n">Inference p50 / p99, ms</th><th scope="col" class="n">Failed</th>
      <th scope="col" class="n">Expected wait, s</th><th scope="col" class="n">Backlog</th>
      <th scope="col" class="n">Replicas</th><th scope="col">15 min</th></tr></thead>
    <tbody>${rows.map((row, index) => {
      const rate = rates[row.worker]?.[0];
      return html`<tr key=${row.worker} class=${row.chosen ? "chosen" : ""}>
        <td><span class="name"><${Swatch} index=${index} /><b>${title(row)}</b></span> <span class="why">${row.rank ? `rank ${row.rank}, ` : ""}worker ${row.worker}</span>
          ${row.chosen && html`<span class="why">★ chosen: ${row.direction === "lower" ? "lowest" : "highest"} ${row.metric} of the ready versions with this input</span>`}
          ${row.excluded && html`<span class="why">⊘ ${row.excluded_why}</span>`}
          ${row.circuit_open && !row.excluded && html`<span class="why">⚠ its jobs keep failing, and no other version of the model is ready</span>`}
          ${row.start_failure && html`<span class="why">⚠ ${startFailure(row)}</span>`}
          ${[...new Set(row.replicas.flatMap((each) => each.warnings))].map((said) => html`<span class="why">⚠ ${said}</span>`)}</td>
        <td data-label="State"><span class="tag ${row.excluded || stateOf(row)}">${stateOf(row)}</span></td>
        <td class="n" data-label="val_accuracy">${figure(row)}${halfWidth(row)}<span class="why">${origin(row)}</span></td>
        <td class="n" data-label="Share">${total > 0 && rate != null ? `${number((rate / total) * 100)} %` : "–"}</td>
        <td class="n" data-label="Jobs/s">${number(rate, rate < 10 ? 1 : 0)}</td>
        <td class="n" data-label="p50 / p99, ms">${ms(row.inference_ms.p50)} / ${ms(row.inference_ms.p99)}</td>
        <td class="n" data-label="Failed">${number(row.jobs_failed)}</td>
        <td class="n" data-label="Expected wait, s">${number(row.expected_wait_s, 2)}</td>
        <td class="n" data-label="Backlog">${number(row.backlog_jobs)}</td>
        <td class="n" data-label="Replicas">${number(row.live_workers)}</td>
        <td data-label="15 min"><${Spark} points=${points} worker=${row.worker} of="jobs_per_s"
          stroke=${colour(index)} label="Jobs per second of ${title(row)} over 15 minutes" /></td></tr>`;
    })}</tbody></table></div>`;
}

function Chart({ name, of, unit, rows, points, span }) {
  const place = useRef(null);
  const drawn = useRef(null);
  const [pointed, setPointed] = useState(null); // the place of the point under the pointer, in any of the charts
  const shape = rows.map((row) => row.worker).join();
  const data = [points.map((point) => point[0]), ...rows.map((row) =>
    points.map((point) => point[1][row.worker]?.[SERIES.indexOf(of)] ?? null))];
  useEffect(() => {
    const axis = { stroke: css("--soft"), grid: { stroke: css("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
    const make = () => {
      drawn.current?.destroy();
      drawn.current = new uPlot({
        width: place.current.clientWidth, height: 190, legend: { show: false }, cursor: { drag: { x: false, y: false }, sync: { key: "charts" } },
        hooks: { setCursor: [(chart) => setPointed(chart.cursor.idx ?? null)] },
        scales: { x: { range: (_, low, high) => shownSpan(low ?? 0, high ?? 1, STEP_S[span] * MOST_POINTS[span]) }, y: { range: (_, low, high) => [0, Math.max(high ?? 0, 1) * 1.1] } },
        axes: [{ ...axis, size: 28, space: 70, incrs: TICKS_S, values: (_, ticks) => ticks.map(clock) }, { ...axis, size: 52, values: (_, ticks) => ticks.map((tick) => tick.toLocaleString("en", { maximumFractionDigits: 6 })) }],
        series: [{}, ...rows.map((row, index) => ({ label: title(row), stroke: css(`--s${index % 6}`), width: 1.8, spanGaps: false,
          dash: dash(index), points: { show: (chart) => chart.data[0].length < 3 } }))],
      }, data, place.current);
    };
    make();
    const resized = new ResizeObserver(() => drawn.current.setSize({ width: place.current.clientWidth, height: 190 }));
    resized.observe(place.current);
    const theme = matchMedia("(prefers-color-scheme: dark)");
    theme.addEventListener("change", make);
    return () => { resized.disconnect(); theme.removeEventListener("change", make); drawn.current.destroy(); drawn.current = null; };
  }, [shape, span]);
  useEffect(() => drawn.current?.setData(data), [points]);
  const valueOf = (point, row) => point?.[1][row.worker]?.[SERIES.indexOf(of)];
  const told = rows.map((row) => `${title(row)} ${number(valueOf(points.at(-1), row), 1)}`).join(", ");
  const shown = points[pointed] ?? points.at(-1);
  return html`<figure class="card" style=${{ margin: 0 }}><div class="row spread top"><h3>${name}${unit && `, ${unit}`}</h3>
    <div class="values">${rows.map((row, index) => html`<span key=${row.worker} title=${title(row)}>
      <${Swatch} index=${index} />${number(valueOf(shown, row), 1)}</span>`)}
      <span class="muted">${shown ? clock(shown[0]) : ""}</span></div></div>
    <div class="chart" ref=${place} role="img" aria-label="${name}, last: ${told}"></div></figure>`;
}

function Now({ pool, rows }) {
  const [span, setSpan] = useState("15m");
  const points = pointsOf(pool, span);
  const total = (of) => rows.reduce((sum, row) => sum + (of(row) ?? 0), 0);
  const chosen = rows.find((row) => row.chosen);
  const shown = [...rows].slice(0, 12);
  return html`
    <dl class="facts card">
      <div><dt>Answers now</dt><dd>${chosen ? title(chosen) : "none"} <small>${chosen ? `${chosen.metric === "val_accuracy" ? "val_accuracy " : ""}${figure(chosen)}` : ""}</small></dd></div>
      <div><dt>Jobs per second</dt><dd>${number(total((row) => doneRate(pool.rates, row)), 1)}</dd></div>
      <div><dt>Jobs waiting or running</dt><dd>${number(total((row) => row.backlog_jobs))}</dd></div>
      <div><dt>Ready workers</dt><dd>${number(total((row) => row.live_workers))}</dd></div>
      <div><dt>Failed since start</dt><dd>${number(total((row) => row.jobs_failed))} <small>of ${number(total((row) => row.jobs_done + row.jobs_failed))}</small></dd></div>
    </dl>
    <h2>Versions</h2>
    <${Versions} rows=${rows} rates=${pool.rates} points=${pointsOf(pool, "15m")} />
    <div class="row spread"><h2>Over time</h2><div class="row" role="group" aria-label="Span of the charts">
      ${Object.entries({ "15m": "15 minutes", "24h": "24 hours" }).map(([name, label]) =>
        html`<button key=${name} aria-pressed=${span === name} onClick=${() => setSpan(name)}>${label}</button>`)}</div></div>
    ${rows.length > 12 && html`<p class="muted">The charts show the first 12 of ${rows.length} versions.</p>`}
    <div class="charts">
      <${Chart} name="Throughput" unit="jobs/s" of="jobs_per_s" rows=${shown} points=${points} span=${span} />
      <${Chart} name="Inference latency p99" unit="ms" of="p99_ms" rows=${shown} points=${points} span=${span} />
      <${Chart} name="Batch size" unit="samples" of="batch_samples" rows=${shown} points=${points} span=${span} />
      <${Chart} name="Backlog" unit="jobs" of="backlog_jobs" rows=${shown} points=${points} span=${span} />
    </div>`;
}

function SignIn({ error, onKey }) {
  const field = useRef(null);
  return html`<form class="card" style=${{ maxWidth: "480px", marginTop: "20px" }}
    onSubmit=${(event) => { event.preventDefault(); onKey(field.current.value.trim()); }}>
    <h2 style=${{ marginTop: 0 }}>Sign in</h2><p>${error}</p>
    <p><label>API key with the role operate <input ref=${field} type="password" autocomplete="off" required /></label></p>
    <button class="main">Show the pool</button><p class="muted">The key stays in this page's memory.</p></form>`;
}

function Connection({ pool }) {
  const [, tick] = useState(0);
  useEffect(() => { const timer = setInterval(() => tick((n) => n + 1), 1000); return () => clearInterval(timer); }, []);
  const stale = pool.state === "live" && Date.now() - pool.at > STALE_MS;
  const kind = pool.state === "away" ? "away" : stale ? "stale" : "";
  const words = { connecting: "connecting", away: "disconnected", locked: "signed out", live: stale ? "stale" : "live" }[pool.state];
  const age = pool.at ? `, ${number((Date.now() - pool.at) / 1000)} s ago` : "";
  return html`<div class="status" role="status"><span class="dot ${kind}"></span>${words}${pool.state === "live" && !stale ? "" : age}</div>`;
}

/** The section in the address: `#jobs?status=failed` names `jobs`. */
const section = () => location.hash.slice(1).split("?")[0] || "now";

function App() {
  const [signedIn, setSignedIn] = useState(0);
  const [tab, setTab] = useState(section());
  useEffect(() => {
    const turn = () => setTab(section());
    addEventListener("hashchange", turn);
    return () => removeEventListener("hashchange", turn);
  }, []);
  const pool = usePool(signedIn);
  const rows = pool.rows && ranked(pool.rows);
  const Shown = { now: Now, jobs: Jobs, why: Why, try: Try, pool: Pool }[tab] ?? Now;
  return html`<header><h1>Modelyard</h1>
      <nav aria-label="Sections">${Object.entries(TABS).map(([name, label]) =>
        html`<a key=${name} href=${`${location.pathname}#${name}`} aria-current=${tab === name ? "page" : undefined}>${label}</a>`)}</nav>
      <${Connection} pool=${pool} /></header>
    <main>
      ${pool.state === "away" && html`<p class="card banner" role="alert">${pool.error}</p>`}
      ${pool.state === "locked" ? html`<${SignIn} error=${pool.error} onKey=${(value) => { setKey(value); setSignedIn((n) => n + 1); }} />`
        : !rows ? html`<p class="card muted">Reading the pool …</p>`
        : !rows.length && tab !== "jobs" ? html`<p class="card banner note">The pool is empty: no worker runs and no job waits.
            Start a worker with <code>modelyard worker</code>.</p>`
        : html`<${Shown} pool=${pool} rows=${rows} />`}
    </main>
    <footer><a href="docs">API</a> · figures arrive as they change</footer>`;
}

const place = document.getElementById("app");
place.textContent = "";
render(html`<${App} />`, place);
