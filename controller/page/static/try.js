// The section of trials: a form made from a version's contract, and the answers of one version or of all.
import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { ask, headers, ms, number, problem, title } from "./shared.js";

const NUMBERS = ["integer", "long", "float", "double"];

function Bars({ scores }) {
  const best = scores.indexOf(Math.max(...scores));
  return html`<div class="bars">${scores.map((score, index) => html`<span>${index}</span>
    <div class="bar ${index === best ? "best" : ""}"><i style=${{ width: `${Math.max(0, Math.min(1, score)) * 100}%` }}></i></div>
    <span>${number(score, 3)}</span>`)}</div>`;
}

/** A pad to draw on, which answers an image of height x width in [0, 1]. */
function Pad({ height, width, onImage }) {
  const place = useRef(null);
  const small = useRef(null);
  const last = useRef(null);
  useEffect(() => { small.current = Object.assign(document.createElement("canvas"), { width, height }); clear(); }, [height, width]);
  const clear = () => {
    const pen = place.current.getContext("2d");
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, 252, 252);
    onImage(null);
  };
  const draw = (event) => {
    if (!event.buttons) { last.current = null; return; }
    const box = place.current.getBoundingClientRect();
    const point = [((event.clientX - box.left) / box.width) * 252, ((event.clientY - box.top) / box.height) * 252];
    const pen = place.current.getContext("2d");
    Object.assign(pen, { strokeStyle: "#fff", lineWidth: 20, lineCap: "round", lineJoin: "round" });
    pen.beginPath();
    pen.moveTo(...(last.current ?? point));
    pen.lineTo(...point);
    pen.stroke();
    last.current = point;
  };
  const done = () => {
    last.current = null;
    const pen = small.current.getContext("2d", { willReadFrequently: true });
    pen.drawImage(place.current, 0, 0, width, height);
    const pixels = pen.getImageData(0, 0, width, height).data;
    onImage(Array.from({ length: height * width }, (_, index) => Math.round((pixels[index * 4] / 255) * 1000) / 1000));
  };
  return html`<div><canvas class="pad" ref=${place} width="252" height="252" aria-label="Drawing pad for an image of ${height} by ${width}"
    onPointerDown=${draw} onPointerMove=${draw} onPointerUp=${done} onPointerLeave=${(event) => event.buttons && done()}></canvas>
    <p><button onClick=${clear}>Clear</button></p></div>`;
}

const zeros = (shape) => (shape.length ? Array.from({ length: shape[0] }, () => zeros(shape.slice(1))) : 0);

/** The first row of a body for columns, by name. */
function firstRow(body, columns) {
  const split = body?.dataframe_split;
  if (split) return Object.fromEntries(split.columns.map((name, index) => [name, split.data[0]?.[index]]));
  const row = (body?.dataframe_records ?? body?.instances ?? [])[0] ?? {};
  return Object.fromEntries(columns.map(({ name }) => [name, row[name] ?? null]));
}

/** A field for a value of a contract's type; what is not of a simple type is written as JSON. */
function Field({ name, type, value, long, onValue }) {
  const isNumber = NUMBERS.includes(type), isText = ["string", "datetime", "binary"].includes(type) && (value === null || typeof value !== "object");
  const shown = value == null ? "" : isText ? value : typeof value === "object" ? JSON.stringify(value) : String(value);
  const read = (event) => {
    const text = event.target.value;
    if (text === "") return onValue(type === "string" ? "" : null);
    if (isText) return onValue(text);
    try { onValue(JSON.parse(text)); } catch { onValue(text); } // the controller says what is wrong with it
  };
  return html`<label class="field"><span>${name} <small>${type}</small></span>
    ${type === "boolean" ? html`<select value=${shown} onChange=${read}>${["", "true", "false"].map((each) => html`<option key=${each}>${each}</option>`)}</select>`
      : long ? html`<textarea class="short" value=${shown} onInput=${read}></textarea>`
      : html`<input inputmode=${isNumber ? "decimal" : undefined} value=${shown} onInput=${read} spellcheck="false" />`}</label>`;
}

/** Fields for one row of columns and for the parameters. */
function Fields({ input, body, onBody }) {
  const given = (() => { try { return JSON.parse(body); } catch { return null; } })();
  if (!given || Array.isArray(given)) return html`<p class="muted">The body is no JSON object: mend it below.</p>`;
  const row = firstRow(given, input.columns);
  const write = (columns, params) => onBody(JSON.stringify({
    dataframe_records: [columns], ...(Object.keys(params).length ? { params } : {}) }));
  return html`<div class="fields">
    ${input.columns.map(({ name, type }) => html`<${Field} key=${name} name=${name} type=${type.kind} value=${row[name]}
      long=${type.kind === "string" && input.columns.length === 1} onValue=${(value) => write({ ...row, [name]: value }, given.params ?? {})} />`)}
    ${(input.params ?? []).map((each) => html`<${Field} key=${each.name} name=${each.name} type=${each.type}
      value=${given.params?.[each.name] ?? each.default} onValue=${(value) => write(row, { ...given.params, [each.name]: value })} />`)}</div>`;
}

/** A place to drop or choose a PNG or JPEG file. */
function Drop({ image, file, onFile }) {
  const take = (files) => { if (files[0]) onFile(files[0]); };
  const size = image.width && image.height ? ` of ${image.width}×${image.height} pixels` : "";
  return html`<div class="drop" onDragOver=${(event) => event.preventDefault()}
    onDrop=${(event) => { event.preventDefault(); take(event.dataTransfer.files); }}>
    <label>Drop a PNG or JPEG image${size}, or choose one <input type="file" accept="image/png,image/jpeg" onChange=${(event) => take(event.target.files)} /></label>
    ${file && html`<p class="row none">${file.name} is sent. <button onClick=${() => onFile(null)}>Send the JSON instead</button></p>`}</div>`;
}

function Answer({ label, status, document: said }) {
  const first = said.predictions?.[0];
  return html`<article>
    <h3>${said.model_name ? title(said) : label}: ${status || "no answer"} ${said.status ?? ""}</h3>
    ${said.detail && html`<p>${said.detail}</p>`}
    ${first && html`<p>${first.label != null ? html`label <b>${first.label}</b>` : first.value != null ? html`value <b>${first.value}</b>` : html`class <b>${first.class}</b>`}</p>`}
    ${first?.scores?.length > 1 && html`<${Bars} scores=${first.scores} />`}
    ${!first && said.outputs !== undefined && html`<pre>${JSON.stringify(said.outputs, null, 1)}</pre>`}
    ${said.end_to_end_ms != null && html`<p class="muted">waited ${ms(said.queue_wait_ms)} ms, inference ${ms(said.inference_ms)} ms,
      end to end ${ms(said.end_to_end_ms)} ms; ${said.forced ? "forced" : `chosen by ${said.policy}`}</p>`}
    <details><summary>JSON</summary><pre>${JSON.stringify(said, null, 1)}</pre></details></article>`;
}

export function Try({ rows }) {
  const ready = rows.filter((row) => row.live_workers > 0);
  const [target, setTarget] = useState("");
  const [text, setText] = useState(null);
  const [file, setFile] = useState(null);
  const [answers, setAnswers] = useState([]);
  const [busy, setBusy] = useState(false);
  const [examples, setExamples] = useState({}); // by worker number; the stream of the pool leaves them out
  const numbers = ready.map((each) => each.worker).join();
  useEffect(() => {
    ask("workers").then((said) => setExamples(Object.fromEntries(said.workers.map((each) => [each.worker, each.example]))), () => {});
  }, [numbers]);
  const row = ready.find((each) => String(each.worker) === target) ?? ready[0];
  if (!row) return html`<p class="card">No worker is ready. Start one with <code>modelyard worker</code>.</p>`;
  const input = row.input ?? {};
  const shape = (input.shape ?? []).slice(1);
  const canDraw = input.dtype?.startsWith("float") && shape.length >= 2 && shape.slice(0, -2).every((n) => n === 1) &&
    shape.at(-1) <= 64 && shape.at(-2) <= 64;
  const hasForm = input.columns?.length > 0 && input.columns.every((each) => each.name);
  const body = text ?? JSON.stringify(examples[row.worker] ?? { data: [zeros(shape.map((size) => (size < 0 ? 1 : size)))] });
  const turn = (event) => { setTarget(event.target.value); setText(null); setFile(null); };
  const predict = async (query, label) => {
    const answer = await fetch(`predict?wait=10${query}`, {
      method: "POST", headers: headers({ "Content-Type": file?.type ?? "application/json" }), body: file ?? body });
    return { label, status: answer.status, document: await problem(answer) };
  };
  const send = async (everyone) => {
    setBusy(true);
    const same = ready.filter((each) => JSON.stringify(each.input) === JSON.stringify(row.input));
    const asked = everyone ? same.map((each) => predict(`&worker=${each.worker}`, title(each)))
      : [predict(target ? `&worker=${target}` : "", target ? title(row) : "the routed version")];
    const settled = await Promise.allSettled(asked);
    setAnswers(settled.map((each) => each.value ?? { label: "", status: 0, document: { detail: "The controller does not answer." } }));
    setBusy(false);
  };
  return html`<div class="two" style=${{ marginTop: "14px" }}>
    <section class="card"><h2 style=${{ marginTop: 0 }}>Request</h2>
      <p class="row"><label>Send to <select value=${target} onChange=${turn}>
        <option value="">the version that routing chooses</option>
        ${ready.map((each) => html`<option key=${each.worker} value=${each.worker}>${title(each)} (worker ${each.worker})</option>`)}</select></label></p>
      ${canDraw && html`<${Pad} height=${shape.at(-2)} width=${shape.at(-1)} onImage=${(pixels) => { setFile(null); setText(pixels && JSON.stringify({ data: pixels })); }} />`}
      ${input.image && html`<${Drop} image=${input.image} file=${file} onFile=${setFile} />`}
      ${hasForm && html`<${Fields} input=${input} body=${body} onBody=${setText} />`}
      ${!file && html`<label>Body, JSON${input.dtype && `; one sample is ${input.dtype} of shape ${shape.join("×") || "1"}`}
        <textarea spellcheck="false" value=${body} onInput=${(event) => setText(event.target.value)}></textarea></label>`}
      <p class="row"><button class="main" disabled=${busy} onClick=${() => send(false)}>Send</button>
        <button disabled=${busy} onClick=${() => send(true)}>Send to all versions</button></p></section>
    <section class="card" aria-live="polite"><h2 style=${{ marginTop: 0 }}>Answer</h2>
      ${!answers.length && html`<p class="muted">Nothing was sent yet.</p>`}
      <div class="answers">${answers.map((each, index) => html`<${Answer} key=${index} ...${each} />`)}</div>
    </section></div>`;
}
