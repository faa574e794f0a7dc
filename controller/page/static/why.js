// The section of reasons: why one job went where it did, and what was decided about versions.
import { html, useEffect, useState } from "./vendor/preact-htm.js";
import { ask, figure, number, title } from "./shared.js";

const AGAIN_MS = 5000;
const KINDS = {
  disabled: "disabled", enabled: "put back into service", retired: "retired", pinned: "pinned", unpinned: "unpinned",
  forgotten: "forgotten", scaled: "scaled", unscaled: "scaled by the pool again", circuit_opened: "circuit opened", circuit_closed: "circuit closed",
  chosen: "chosen",
};

const when = (at_ms) => new Date(at_ms).toLocaleString("en", { dateStyle: "medium", timeStyle: "medium", hour12: false });

export function Why({ rows }) {
  const [decisions, setDecisions] = useState(null);
  const [error, setError] = useState("");
  useEffect(() => {
    const read = () => ask("decisions?limit=200").then(
      (said) => { setDecisions(said.decisions); setError(""); }, (failed) => setError(failed.message));
    read();
    const timer = setInterval(() => { if (!document.hidden) read(); }, AGAIN_MS);
    return () => clearInterval(timer);
  }, []);
  return html`<${Explained} />
    <h2>Order of the versions now</h2>
    <div class="card scroll" tabindex="0" role="region" aria-label="Order of the versions"><table class="fold">
      <thead><tr><th scope="col">Version</th><th scope="col" class="n">Rank</th><th scope="col" class="n">val_accuracy</th>
        <th scope="col">Logged for</th><th scope="col">Data set</th><th scope="col">Aliases</th><th scope="col">Routing</th></tr></thead>
      <tbody>${rows.map((row) => html`<tr key=${row.worker} class=${row.chosen ? "chosen" : ""}>
        <td><b class="name">${title(row)}</b></td>
        <td class="n" data-label="Rank">${number(row.rank)}</td>
        <td class="n" data-label="val_accuracy">${figure(row)}</td>
        <td data-label="Logged for">${{ model: "the model", run: "its run", tag: "the version (tag)" }[row.val_accuracy_source] ?? "–"}</td>
        <td data-label="Data set">${row.dataset || "undeclared"}</td>
        <td data-label="Aliases">${row.aliases.join(", ") || "–"}</td>
        <td data-label="Routing">${row.excluded ? row.excluded_why : row.chosen ? "chosen" : row.rank ? "after the chosen one" : "no worker is ready"}</td>
      </tr>`)}</tbody></table></div>
    <h2>Decisions</h2>
    ${error && html`<p class="card banner" role="alert">${error}</p>`}
    ${!decisions ? html`<p class="card muted">Reading the decisions …</p>` : !decisions.length
      ? html`<p class="card muted">Nothing was decided yet. <code>modelyard disable NAME/2</code> takes a version out of the routing.</p>`
      : html`<div class="card scroll" tabindex="0" role="region" aria-label="Decisions"><table class="fold">
        <thead><tr><th scope="col">When</th><th scope="col">Version</th><th scope="col">Decision</th><th scope="col">By</th><th scope="col">Why</th></tr></thead>
        <tbody>${decisions.map((each) => html`<tr key=${each.at_ms + each.kind + each.endpoint}>
          <td class="when">${when(each.at_ms)}</td>
          <td data-label="Version"><span class="name">${title(each)}</span></td>
          <td data-label="Decision">${KINDS[each.kind] ?? each.kind}${each.endpoint && each.endpoint !== each.model_name ? ` by ${each.endpoint}` : ""}</td>
          <td data-label="By">${each.by || "–"}</td><td data-label="Why" class="long">${each.reason || "–"}</td></tr>`)}</tbody></table></div>`}`;
}

/** A form that explains the route of one job. */
function Explained() {
  const [id, setId] = useState("");
  const [said, setSaid] = useState(null);
  const explain = (event) => {
    event.preventDefault();
    ask(`results/${encodeURIComponent(id.trim())}?explain=true`).then(setSaid, (error) => setSaid({ detail: error.message }));
  };
  return html`<form class="card details" onSubmit=${explain}>
    <p class="row"><label>Why did job <input value=${id} onInput=${(event) => setId(event.target.value)} size="36" required spellcheck="false" /> go where it did?</label>
      <button class="main">Explain</button></p>
    <div aria-live="polite">${said?.detail && html`<p>${said.detail}</p>`}
      ${said?.id && html`<p>${title(said)}: ${said.forced ? "its request named it" : `chosen by ${said.policy}`},
        ${said.metric ? "" : "val_accuracy "}${figure(said)}.</p><pre>${JSON.stringify(said, null, 1)}</pre>`}</div></form>`;
}
