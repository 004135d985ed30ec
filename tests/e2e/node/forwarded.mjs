// node forwarded.mjs KIND: an unchanged program behind the forwarder (uri) or the copilot-shaped program it spawns (stdio, tcp).
// Reads lines and prints one for each: what the session answers to "say PROMPT"; "break PROMPT": how a turn ends that is cut, after
// "streaming" was printed.
import readline from "node:readline";
import { CopilotClient, RuntimeConnection } from "@github/copilot-sdk";

const [kind] = process.argv.slice(2);
const model = JSON.parse(process.env.MODEL);
const connections = {
  uri: () => RuntimeConnection.forUri(process.env.FORWARDER),
  stdio: () => RuntimeConnection.forStdio(),
  tcp: () => RuntimeConnection.forTcp(),
};
const client = new CopilotClient({ connection: connections[kind]() });
await client.start();
const session = await client.createSession({
  model: model.name,
  provider: { type: "openai", baseUrl: model.base_url, apiKey: model.api_key },
  streaming: true,
});
const idle = () => new Promise((resolve) => {
  const off = session.on("session.idle", () => resolve(off()));
  setTimeout(resolve, 20_000).unref();
});
for await (const line of readline.createInterface({ input: process.stdin })) {
  const [verb, ...words] = line.split(" ");
  const off = session.on("assistant.message_delta", () => {
    off();
    if (verb === "break") console.log("streaming");
  });
  try {
    const answer = await session.sendAndWait({ prompt: words.join(" ") }, 20_000);
    console.log(`said ${answer?.data.content}`);
  } catch (error) {
    // The SDK takes any idle for the end of what was asked last: that of this turn comes half a second after its error.
    if (verb === "break") await idle();
    console.log(`failed ${error.message}`);
  }
  off();
}
await client.stop();
