// What the programs of these tests share: clients of the published npm SDK on a running demo, and a runner for scenarios.
// The demo is described by the JSON line in AERODROME_DEMO, as `aerodrome demo --json` printed it.
import assert from "node:assert/strict";
import { CopilotClient, RuntimeConnection, ToolSet } from "@github/copilot-sdk";

const demo = JSON.parse(process.env.AERODROME_DEMO);
const scenarios = [];
const running = [];

// Bounds, not paces: a turn takes some 30 ms.
export const TURN_MS = 20_000;

export function scenario(name, run) {
  scenarios.push({ name, run });
}

// Run every scenario in turn; print one JSON line for each.
export async function runScenarios(context) {
  for (const { name, run } of scenarios) {
    const line = { name, ok: true };
    try {
      await within(TURN_MS * 1.5, run(context), "the scenario");
    } catch (error) {
      Object.assign(line, { ok: false, error: String(error?.stack ?? error) });
    } finally {
      await Promise.all(running.splice(0).map((program) => program.client.forceStop()));
    }
    console.log(JSON.stringify(line));
  }
}

// Who plays which part: an owner, a colleague in the same tenant, a stranger in another one.
export function castOf(isolation) {
  const users = demo.principals.filter((principal) => principal.isolation === isolation);
  const [owner, colleague] = users.filter((user) => user.tenant === users[0].tenant);
  const stranger = users.find((user) => user.tenant !== owner.tenant);
  return { owner, colleague, stranger };
}

export function findPrincipal(tenant, user) {
  return demo.principals.find((principal) => principal.tenant === tenant && principal.user === user);
}

export function runtimeVersion() {
  return demo.runtime.version;
}

export function connectWith(token, mode) {
  return new CopilotClient({ connection: RuntimeConnection.forUri(demo.sdk, { connectionToken: token }), mode });
}

export async function connect(principal, mode = "copilot-cli") {
  const program = new Program(connectWith(principal.token, mode), mode);
  running.push(program);
  await program.client.start();
  return program;
}

export class Program {
  constructor(client, mode) {
    this.client = client;
    this.mode = mode;
  }

  wishes(more) {
    const { name, base_url, api_key } = demo.model;
    const provider = { type: "openai", baseUrl: base_url, apiKey: api_key };
    // An empty session must name the tools it wants.
    const tools =
      this.mode === "empty" ? { availableTools: new ToolSet().addCustom("*").addBuiltIn("ask_user") } : {};
    return { model: name, provider, streaming: true, ...tools, ...more };
  }

  create(more = {}) {
    return this.client.createSession(this.wishes(more));
  }

  resume(sessionId, more = {}) {
    return this.client.resumeSession(sessionId, this.wishes(more));
  }

  async listIds() {
    return (await this.client.listSessions()).map((session) => session.sessionId);
  }

  // Below the SDK's public interface, as a program that means harm would go.
  ask(method, params) {
    return within(TURN_MS, this.client.connection.sendRequest(method, params), method);
  }

  // An array that grows with all that this program is told, asked for or not.
  overhear() {
    const heard = [];
    for (const name of ["handleSessionEventNotification", "handleSessionLifecycleNotification"]) {
      const usual = this.client[name].bind(this.client);
      this.client[name] = (notification) => {
        heard.push(notification);
        usual(notification);
      };
    }
    return heard;
  }
}

export class Recorder {
  constructor() {
    this.notes = [];
    this.waiting = [];
    this.note = (event) => {
      this.notes.push({ at: performance.now(), event });
      this.waiting = this.waiting.filter(({ wanted, found }) => !(wanted(event) && (found(event), true)));
    };
  }

  of(type) {
    return this.notes.filter(({ event }) => event.type === type);
  }

  first(type, where = () => true) {
    const wanted = (event) => event.type === type && where(event);
    const past = this.notes.find(({ event }) => wanted(event));
    const future = past ? past.event : new Promise((found) => this.waiting.push({ wanted, found }));
    return within(TURN_MS, Promise.resolve(future), type);
  }
}

export async function say(session, prompt) {
  const answer = await session.sendAndWait({ prompt }, TURN_MS);
  assert.ok(answer, `no answer to ${prompt}`);
  return answer.data.content;
}

export function factTool(options = {}) {
  const calls = [];
  const parameters = { type: "object", properties: { topic: { type: "string" } } };
  const handler = async (given) => {
    calls.push(given);
    return `a fact about ${given.topic}`;
  };
  return { calls, tool: { name: "fact", description: "Tell a fact.", parameters, handler, ...options } };
}

export async function within(milliseconds, promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} took longer than ${milliseconds} ms`)), milliseconds);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
