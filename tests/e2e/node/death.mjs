// node death.mjs TENANT USER: a program whose runtime is killed while it waits for an answer.
// Prints "streaming" when the runtime may be killed, then one JSON line: how the turn ended, and what the same session says next.
import { connect, findPrincipal, Recorder, say } from "./programs.mjs";

const [tenant, user] = process.argv.slice(2);
const program = await connect(findPrincipal(tenant, user));
const session = await program.create();
await say(session, "remember the moon");
const heard = new Recorder();
session.on(heard.note);
const waiting = say(session, "[stream 1000 300]").then(
  () => "no error",
  (error) => error.message,
);
await heard.first("assistant.message_delta");
console.log("streaming");
const failure = await waiting;
const failedAt = Date.now() / 1000;
const recalled = await say(session, "[recall]");
const created = await say(await program.create(), "hello");
console.log(JSON.stringify({ failure, failedAt, recalled, created }));
await program.client.forceStop();
