// The gateway's HTTP API as the page uses it: calls that are tried again where that is safe, and an event stream that comes back.

const TRY_AGAIN = new Set([429, 502, 503, 504]);
const TRIES = 4;
/** A stream that says nothing for so long is broken: the gateway says at least a comment every 15 seconds. */
const SILENCE_MS = 45_000;
const LONGEST_WAIT_MS = 10_000;

/** Why a call was not answered as asked. `detail` is for people and says what to do. */
export class Problem extends Error {
  constructor(status, said = {}) {
    super(said.detail || (status ? `The gateway answered ${status}.` : "The gateway cannot be reached. Check the connection and that it runs."));
    this.status = status;
    this.code = said.code || (status ? `http_${status}` : "connection_lost");
    this.retryable = said.retryable ?? (status === 0 || TRY_AGAIN.has(status));
  }
}

async function problemOf(answer) {
  let said = {};
  try {
    said = await answer.json();
  } catch {
    // A proxy's page: its status says enough.
  }
  return new Problem(answer.status, said);
}

function pause(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

/** Make a call; return its JSON. A POST carries one Idempotency-Key through all tries, so the gateway does it once. */
export async function call(method, path, body) {
  const headers = { Accept: "application/json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (method === "POST") headers["Idempotency-Key"] = newKey();
  for (let tried = 1; ; tried += 1) {
    let problem;
    let asked = 0;
    try {
      const answer = await fetch(path, {
        method, headers, body: body === undefined ? undefined : JSON.stringify(body), credentials: "same-origin", redirect: "error",
      });
      if (answer.ok) return answer.status === 204 ? null : await answer.json();
      problem = await problemOf(answer);
      asked = Number(answer.headers.get("Retry-After")) * 1000 || 0;
    } catch {
      problem = new Problem(0);
    }
    if (tried >= TRIES || !problem.retryable || !(problem.status === 0 || TRY_AGAIN.has(problem.status)) || asked > LONGEST_WAIT_MS) {
      throw problem;
    }
    await pause(Math.max(asked, 250 * 2 ** tried * (0.5 + Math.random() / 2)));
  }
}

function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Read server-sent events (WHATWG HTML, section 9.2.6). */
class Reader {
  constructor(cursor) {
    this.cursor = cursor;
    this.rest = "";
    this.fields = { data: [] };
  }

  feed(text) {
    const lines = (this.rest + text).split("\n");
    this.rest = lines.pop();
    const found = [];
    for (const line of lines) {
      const at = line.indexOf(":");
      const name = at < 0 ? line : line.slice(0, at);
      const value = at < 0 ? "" : line.slice(at + 1).replace(/^ /, "");
      if (line === "") {
        if (this.fields.id !== undefined) this.cursor = this.fields.id;
        if (this.fields.data.length) found.push({ cursor: this.cursor, data: this.fields.data.join("\n") });
        this.fields = { data: [] };
      } else if (name === "data") this.fields.data.push(value);
      else if (name === "id") this.fields.id = value;
    }
    return found;
  }
}

/**
 * Follow the events of a session: each once and in order, whatever breaks in between.
 *
 * Tells `opened()`, `heard(events)`, `lost(problem, milliseconds until the next try)`, and at last `refused(problem)`.
 * Why not EventSource: it gives up for good when a gateway that starts again answers 503 once, and says no reason.
 */
export class Follower {
  constructor(path, listener) {
    this.path = path;
    this.listener = listener;
    this.cursor = "";
    this.isClosed = false;
    this.wake = () => {};
    this.online = () => this.wake();
    this.offline = () => this.stop?.abort();
    window.addEventListener("online", this.online);
    window.addEventListener("offline", this.offline);
    this.run();
  }

  close() {
    this.isClosed = true;
    this.stop?.abort();
    this.wake();
    window.removeEventListener("online", this.online);
    window.removeEventListener("offline", this.offline);
  }

  async run() {
    let waits = 0;
    while (!this.isClosed) {
      let problem = new Problem(0);
      try {
        await this.read(() => { waits = 0; });
      } catch (error) {
        if (error instanceof Problem) problem = error;
      }
      if (this.isClosed) return;
      if (problem.status && !problem.retryable) {
        this.listener.refused(problem);
        return;
      }
      const wait = Math.min(LONGEST_WAIT_MS, 300 * 2 ** waits) * (0.7 + Math.random() * 0.3);
      waits += 1;
      this.listener.lost(problem, wait);
      await new Promise((resolve) => {
        this.wake = resolve;
        setTimeout(resolve, wait);
      });
    }
  }

  async read(worked) {
    this.stop = new AbortController();
    let timer;
    const stay = () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.stop.abort(), SILENCE_MS);
    };
    stay();
    try {
      const headers = { Accept: "text/event-stream", ...(this.cursor ? { "Last-Event-ID": this.cursor } : {}) };
      const answer = await fetch(`${this.path}?start=beginning`, {
        headers, credentials: "same-origin", cache: "no-store", redirect: "error", signal: this.stop.signal,
      });
      if (!answer.ok) throw await problemOf(answer);
      this.listener.opened();
      const reader = new Reader(this.cursor);
      const body = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { value, done } = await body.read();
        if (done || this.isClosed) return;
        stay();
        const said = reader.feed(value);
        this.cursor = reader.cursor;
        if (said.length) {
          worked();
          this.listener.heard(said.map((one) => JSON.parse(one.data)));
        }
      }
    } finally {
      clearTimeout(timer);
    }
  }
}

export function sessionPath(id) {
  return `/v1/sessions/${encodeURIComponent(id)}`;
}
