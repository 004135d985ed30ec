// Unchanged programs of the published npm SDK through the real gateway, on the real runtime.
// node scenarios.mjs ISOLATION: one JSON line for each scenario.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { approveAll } from "@github/copilot-sdk";
import { castOf, connect, connectWith, factTool, Recorder, runScenarios, runtimeVersion, say, scenario, TURN_MS, within } from "./programs.mjs";

const CALL_FACT = '[tool fact {"topic": "the moon"}]';
const MODES = ["copilot-cli", "empty"];

scenario("a new session answers", async ({ owner }) => {
  for (const mode of MODES) {
    const session = await (await connect(owner, mode)).create();
    assert.equal(await say(session, "Hello!"), "You said: Hello!");
  }
});

scenario("an answer is streamed while the model still speaks", async ({ owner }) => {
  const session = await (await connect(owner)).create();
  const heard = new Recorder();
  session.on(heard.note);

  const answer = await say(session, "[stream 6 0.1]");

  const deltas = heard.of("assistant.message_delta");
  assert.equal(answer, "1 2 3 4 5 6");
  assert.equal(deltas.map(({ event }) => event.data.deltaContent).join(""), answer);
  await session.send({ prompt: "[stream 1000 300]" });
  await heard.first("assistant.message_delta", ({ id }) => !deltas.some(({ event }) => event.id === id));
  assert.equal(heard.of("assistant.message").length, 1, "that of the turn before: this one goes on for minutes");
  await session.abort();
});

scenario("a tool of the program is called and its result reaches the model", async ({ owner }) => {
  for (const mode of MODES) {
    const fact = factTool({ skipPermission: true });
    const session = await (await connect(owner, mode)).create({ tools: [fact.tool] });
    assert.equal(await say(session, CALL_FACT), "tool said: a fact about the moon");
    assert.deepEqual(fact.calls, [{ topic: "the moon" }]);
  }
});

scenario("a tool waits for permission and runs when it is given", async ({ owner }) => {
  for (const mode of MODES) {
    const fact = factTool();
    const asked = [];
    const decide = (request, invocation) => {
      asked.push([request.kind, request.toolName, fact.calls.length]);
      return approveAll(request, invocation);
    };
    const session = await (await connect(owner, mode)).create({ tools: [fact.tool], onPermissionRequest: decide });
    assert.equal(await say(session, CALL_FACT), "tool said: a fact about the moon");
    assert.deepEqual(asked, [["custom-tool", "fact", 0]]);
  }
});

scenario("a tool whose permission is refused does not run and the model hears why", async ({ owner }) => {
  for (const mode of MODES) {
    const fact = factTool();
    const refuse = () => ({ kind: "reject", feedback: "not on a Sunday" });
    const session = await (await connect(owner, mode)).create({ tools: [fact.tool], onPermissionRequest: refuse });
    assert.match(await say(session, CALL_FACT), /not on a Sunday/);
    assert.deepEqual(fact.calls, []);
  }
});

scenario("hooks are heard in order and what they change is changed", async ({ owner }) => {
  for (const mode of MODES) {
    const fact = factTool({ skipPermission: true });
    const heard = [];
    const hook = (name, output) => (given, { sessionId }) => {
      heard.push([name, sessionId]);
      return output;
    };
    const session = await (await connect(owner, mode)).create({
      tools: [fact.tool],
      hooks: {
        onSessionStart: hook("start"),
        onUserPromptSubmitted: hook("prompt", { modifiedPrompt: CALL_FACT }),
        onPreToolUse: hook("before", { modifiedArgs: { topic: "the sun" } }),
        onPostToolUse: hook("after", { modifiedResult: { textResultForLlm: "mended", resultType: "success" } }),
        onAgentStop: hook("stop"),
      },
    });
    assert.equal(await say(session, "a prompt that nobody will see"), "tool said: mended");
    assert.deepEqual(fact.calls, [{ topic: "the sun" }]);
    assert.deepEqual(heard, ["start", "prompt", "before", "after", "stop"].map((name) => [name, session.sessionId]));
  }
});

scenario("a hook can deny a tool", async ({ owner }) => {
  const fact = factTool({ skipPermission: true });
  const deny = () => ({ permissionDecision: "deny", permissionDecisionReason: "closed today" });
  const session = await (await connect(owner)).create({ tools: [fact.tool], hooks: { onPreToolUse: deny } });
  assert.match(await say(session, CALL_FACT), /closed today/);
  assert.deepEqual(fact.calls, []);
});

scenario("the model can ask the user", async ({ owner }) => {
  for (const mode of MODES) {
    const asked = [];
    const answer = (request) => {
      asked.push([request.question, request.choices]);
      return { answer: "blue", wasFreeform: true };
    };
    const session = await (await connect(owner, mode)).create({ onUserInputRequest: answer });
    const prompt = '[tool ask_user {"question": "Which colour?", "choices": ["red", "green"]}]';
    assert.match(await say(session, prompt), /blue/);
    assert.deepEqual(asked, [["Which colour?", ["red", "green"]]]);
  }
});

scenario("a session goes on in a new program with its history", async ({ owner }) => {
  for (const mode of MODES) {
    for (const parting of ["stop", "forceStop"]) {
      const before = await connect(owner, mode);
      const session = await before.create();
      await say(session, "remember the moon");
      await before.client[parting]();

      const fact = factTool({ skipPermission: true });
      const resumed = await (await connect(owner, mode)).resume(session.sessionId, { tools: [fact.tool] });
      assert.equal(await say(resumed, "[recall]"), "remember the moon | [recall]");
      assert.equal(await say(resumed, CALL_FACT), "tool said: a fact about the moon");
      const prompts = (await resumed.getEvents()).filter((event) => event.type === "user.message");
      assert.deepEqual(prompts.map((event) => event.data.content), ["remember the moon", "[recall]", CALL_FACT]);
    }
  }
});

scenario("two programs of one user share a session", async ({ owner }) => {
  const [one, other] = [await connect(owner), await connect(owner)];
  const session = await one.create();
  const same = await other.resume(session.sessionId);
  const recorders = [new Recorder(), new Recorder()];
  session.on(recorders[0].note);
  same.on(recorders[1].note);

  assert.equal(await say(session, "from one"), "You said: from one");
  await recorders[1].first("session.idle"); // else the other program takes it for the end of its own turn
  assert.equal(await say(same, "[recall]"), "from one | [recall]");

  await recorders[0].first("assistant.message", (event) => event.data.content === "from one | [recall]");
  const [first, second] = recorders.map((heard) => heard.of("assistant.message").map(({ event }) => event.id));
  assert.equal(first.length, 2);
  assert.deepEqual(first, second);
});

scenario("an abort ends a long answer at once and the session goes on", async ({ owner }) => {
  const session = await (await connect(owner)).create();
  const heard = new Recorder();
  session.on(heard.note);
  await session.send({ prompt: "[stream 1000 300]" });
  await heard.first("assistant.message_delta");

  await session.abort();

  const idle = await within(TURN_MS, heard.first("session.idle"), "the end of an aborted turn");
  assert.equal(idle.data.aborted, true);
  assert.equal(await say(session, "still there?"), "You said: still there?");
});

scenario("a user can list, look up and delete sessions", async ({ owner }) => {
  const program = await connect(owner);
  const before = new Set(await program.listIds());
  const [first, second] = [await program.create(), await program.create()];
  await say(first, "the first");
  await say(second, "the second");
  const fresh = async () => (await program.listIds()).filter((id) => !before.has(id)).sort();

  assert.deepEqual(await fresh(), [first.sessionId, second.sessionId].sort());
  assert.equal(await program.client.getLastSessionId(), second.sessionId);
  assert.equal((await program.client.getSessionMetadata(first.sessionId)).summary, "the first");

  await first.disconnect();
  await program.client.deleteSession(first.sessionId);

  assert.deepEqual(await fresh(), [second.sessionId]);
  assert.equal(await program.client.getSessionMetadata(first.sessionId), undefined);
  await assert.rejects(program.resume(first.sessionId), /not found/);
});

scenario("lifecycle events of one's own sessions reach every program of the user", async ({ owner }) => {
  const [one, other] = [await connect(owner), await connect(owner)];
  const heard = new Recorder();
  other.client.onLifecycle(heard.note);
  const session = await one.create();
  await say(session, "hello");
  await one.client.deleteSession(session.sessionId);
  for (const type of ["session.created", "session.updated", "session.deleted"]) {
    await heard.first(type, (event) => event.sessionId === session.sessionId);
  }
});

scenario("a wrong or missing token fails as at the runtime", async () => {
  for (const token of [undefined, "wrong", "aero_000000000000_wrong"]) {
    const client = connectWith(token);
    await assert.rejects(client.start(), (error) => error.code === -32002 && /AUTHENTICATION_FAILED/.test(error.message));
    await client.forceStop();
  }
});

scenario("status and ping are answered", async ({ owner }) => {
  const { client } = await connect(owner);
  assert.equal((await client.ping("anyone there?")).message, "pong: anyone there?");
  assert.deepEqual(await client.getStatus(), { version: runtimeVersion(), protocolVersion: 3 });
});

const ATTEMPTS = {
  "session.abort": {},
  "session.delete": {},
  "session.destroy": {},
  "session.detach": {},
  "session.eventLog.read": {},
  "session.getMessages": {},
  "session.getMetadata": {},
  "session.log": { message: "stolen" },
  "session.model.switchTo": { modelId: "other" },
  "session.permissions.handlePendingPermissionRequest": { requestId: "r", result: { kind: "approve-once" } },
  "session.resume": {},
  "session.send": { prompt: "[say stolen]" },
  "session.shell.exec": { command: "true" },
  "session.tools.handlePendingToolCall": { requestId: "r", result: "stolen" },
  "sessions.close": {},
  "sessions.fork": {},
};

async function outcome(program, method, sessionId, params) {
  const strip = (text) => String(text).replaceAll(sessionId, "ID");
  try {
    return ["result", strip(JSON.stringify(await program.ask(method, { sessionId, ...params })))];
  } catch (error) {
    return [error.code, strip(error.message)];
  }
}

scenario("a foreign session answers as one that does not exist and its owner notices nothing", async (cast) => {
  for (const intruder of [cast.colleague, cast.stranger]) {
    const owner = await connect(cast.owner);
    const session = await owner.create();
    await say(session, "a secret");
    const heard = new Recorder();
    session.on(heard.note);
    await session.send({ prompt: "[stream 1000 300]" });
    await heard.first("assistant.message_delta");
    const thief = await connect(intruder);
    await say(await thief.create(), "so that it has a runtime");
    const told = thief.overhear();

    for (const [method, params] of Object.entries(ATTEMPTS)) {
      const foreign = await outcome(thief, method, session.sessionId, params);
      assert.deepEqual([method, foreign], [method, await outcome(thief, method, randomUUID(), params)]);
      assert.doesNotMatch(foreign[1], /a secret/);
    }

    assert.deepEqual(heard.of("session.idle"), []);
    assert.ok(!told.some((notification) => notification.sessionId === session.sessionId));
    await session.abort();
    await heard.first("session.idle");
    assert.equal(await say(session, "[recall]"), "a secret | [stream 1000 300] | [recall]");
  }
});

scenario("the functions of the SDK find nothing of another user's", async (cast) => {
  for (const intruder of [cast.colleague, cast.stranger]) {
    const owner = await connect(cast.owner);
    const sessionId = `chosen-${randomUUID()}`;
    const session = await owner.create({ sessionId });
    await say(session, "a secret");
    const thief = await connect(intruder);
    const told = thief.overhear();
    await say(await thief.create(), "mine");

    await assert.rejects(thief.resume(sessionId), new RegExp(`Session not found: ${sessionId}`));
    await assert.rejects(thief.client.deleteSession(sessionId), /not found/);
    assert.equal(await thief.client.getSessionMetadata(sessionId), undefined);
    await assert.rejects(thief.create({ sessionId }), /not available/);
    assert.ok(!(await thief.listIds()).includes(sessionId));
    assert.notEqual(await thief.client.getLastSessionId(), sessionId);

    assert.equal(await say(session, "[recall]"), "a secret | [recall]");
    assert.doesNotMatch(JSON.stringify(told), /a secret/);
  }
});

await runScenarios(castOf(process.argv[2]));
