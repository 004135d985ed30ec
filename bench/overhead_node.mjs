// The Node SDK's half of bench/overhead.py: reads its order from standard input, prints times in milliseconds as JSON.
import { readFileSync } from "node:fs";
import { CopilotClient, RuntimeConnection } from "../tests/e2e/node/node_modules/@github/copilot-sdk/dist/index.js";

const { port, token, model, sessions, turns } = JSON.parse(readFileSync(0, "utf8"));
const times = { create: [], turn: [], ping: [] };
const timed = async (name, work) => {
  const began = performance.now();
  const value = await work();
  times[name].push(performance.now() - began);
  return value;
};

const connection = RuntimeConnection.forUri(`127.0.0.1:${port}`, { connectionToken: token });
const client = new CopilotClient({ connection });
await client.start();
await client.ping();
for (let s = 0; s < sessions; s++) {
  const session = await timed("create", () =>
    client.createSession({
      model: model.name,
      provider: { type: "openai", baseUrl: model.base_url, apiKey: model.api_key },
      availableTools: [],
      streaming: true,
    }),
  );
  for (let t = 0; t < turns; t++) {
    await timed("turn", () => session.sendAndWait({ prompt: "hello" }, 30000));
    await timed("ping", () => client.ping());
  }
  await session.disconnect();
}
await client.stop();
console.log(JSON.stringify(times));
process.exit(0);
