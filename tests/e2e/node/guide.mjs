// The client side of an app written against the SDK's scaling guide: its endpoints, its shapes, one user's token in the header.
// Reads AERODROME_URL and AERODROME_TOKEN; prints what it got as one JSON line.
const url = process.env.AERODROME_URL;
const headers = { "Content-Type": "application/json", Authorization: `Bearer ${process.env.AERODROME_TOKEN}` };

async function post(path, body) {
    const response = await fetch(url + path, {
        method: "POST",
        headers,
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    if (!response.ok) throw new Error(`${path}: ${response.status} ${await response.text()}`);
    return response.json();
}

const { result } = await post("/api/analyze", { prompt: "[say analyzed]" });

const { sessionId } = await post("/api/chat/start");
const first = await post("/api/chat/message", { sessionId, message: "[say one]" });
const second = await post("/api/chat/message", { sessionId, message: "[count]" });
const { success } = await post("/api/chat/end", { sessionId });

const team = await post("/team-chat", { message: "[say team]" });

console.log(JSON.stringify({ result, sessionId, first, second, success, team }));
