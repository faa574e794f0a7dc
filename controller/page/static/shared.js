// What every section of the page uses: the caller's key, requests, and how figures are written.

let key = ""; // kept in memory only

export const hasKey = () => Boolean(key);
export const setKey = (value) => { key = value; };
export const headers = (more = {}) => (key ? { ...more, Authorization: `Bearer ${key}` } : more);

export const number = (value, digits = 0) =>
  value == null || Number.isNaN(value) ? "–"
    : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
/** The figure that ranks a version, with the name of its metric unless that is val_accuracy. */
export const figure = (row) =>
  row.metric && row.metric !== "val_accuracy" ? `${row.metric} ${number(row.metric_value, 4)}` : number(row.val_accuracy, 4);
/** Half of the 95 % interval of a version's val_accuracy, where the number of rows is known. */
export const halfWidth = (row) => (row.val_accuracy_half_width == null ? "" : ` ± ${number(row.val_accuracy_half_width, 4)}`);
export const ms = (value) => (value == null ? "–" : number(value, value < 10 ? 2 : value < 100 ? 1 : 0));
/** Since when and why no worker of a version starts. */
export const startFailure = (row) => `does not start since ${new Date(row.start_failure.since_ms).toLocaleTimeString("en", { hour: "2-digit", minute: "2-digit", hour12: false })}: ${row.start_failure.reason}`;
const RIGHT_TO_LEFT = /[\u0590-\u08ff\u202a-\u202e\ufb1d-\ufdff\ufe70-\ufeff]/;
/** Name and version; a name that is written from right to left is isolated, so that it does not move the version. */
export const title = (row) =>
  `${RIGHT_TO_LEFT.test(row.model_name) ? `\u2068${row.model_name}\u2069` : row.model_name} ${row.model_version ?? ""}`.trim();

/** The document of an answer; a problem if the answer holds none. */
export async function problem(answer) {
  try {
    return await answer.json();
  } catch {
    return { detail: `the controller answered ${answer.status}` };
  }
}

/** The answer to a request with the caller's key; throws an error that says why there is none. */
export async function request(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: headers(options.headers) });
  } catch {
    throw new Error("The controller does not answer.");
  }
  if (!answer.ok) throw new Error((await problem(answer)).detail);
  return answer;
}

/** The document at a path. */
export const ask = async (path, options) => problem(await request(path, options));
