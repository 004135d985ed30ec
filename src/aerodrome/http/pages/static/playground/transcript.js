// A session's conversation, drawn from its events: the same events make the same picture in every tab, whoever sent the prompt.

import { call } from "./api.js";
import { copyButton, count, el, icon, seconds } from "./dom.js";
import { codeBlock, render } from "./markdown.js";
import { Card } from "./requests.js";

const ENDINGS = { aborted: "Stopped", withdrawn: "Withdrawn before it was sent" };
/** What to do about a turn that failed, by its error's code. */
const HINTS = {
  query: "The model's provider answered with this error. Send it again, or put it another way.",
  rate_limit: "The model's provider asks for patience. Send it again in a while.",
  quota: "The quota at the model's provider is used up: ask who runs this gateway.",
  authentication: "The model's provider does not know this gateway: ask who runs it.",
  authorization: "The model's provider refuses this gateway: ask who runs it.",
  context_limit: "The conversation is too long for this model. Start a new chat.",
  runtime_lost: "The runtime ended in this turn. The conversation is kept: send it again.",
};
/** Tools that are something else on this page: a question is a card. */
const QUIET_TOOLS = new Set(["ask_user", "report_intent"]);

/** One prompt and what comes of it. */
class TurnView {
  constructor(transcript, prompt) {
    this.transcript = transcript;
    this.turnId = null;
    this.hasPrompt = false;
    this.hasError = false;
    this.status = "sending";
    this.texts = [];
    this.saidAt = Number.NaN;
    this.firstTextMs = null;
    this.said = el("div", { class: "said", "data-testid": "prompt" });
    this.state = el("div", { class: "turn-state" });
    this.reply = el("div", { class: "reply", "data-testid": "reply" });
    this.activity = el("span", { class: "activity" });
    this.typing = el("div", { class: "typing", hidden: true, "data-testid": "typing" }, el("span", { class: "dots" }, el("i"), el("i"), el("i")), this.activity);
    this.foot = el("footer", { class: "turn-foot", hidden: true, "data-testid": "turn-foot" });
    this.sender = el("span", { class: "sender", hidden: true, "data-testid": "sender" });
    this.element = el("article", { class: "turn" }, el("div", { class: "said-row" }, this.sender, this.said), this.state, this.reply, this.typing, this.foot);
    if (prompt) this.ask(prompt);
  }

  ask(prompt) {
    this.hasPrompt = true;
    this.prompt = prompt;
    this.said.textContent = prompt;
  }

  /** Say whose it is, where it is not the reader's own. */
  from(sender) {
    this.sender.textContent = sender;
    this.sender.hidden = false;
    this.element.classList.add("other");
  }

  show(status, words, ...actions) {
    this.status = status;
    this.element.dataset.status = status;
    this.state.replaceChildren(...(words ? [el("span", { text: words })] : []), ...actions);
    this.move();
  }

  /** Whether something moves shows where nothing else does: no text is coming, no answer of the reader's is waited for. */
  move() {
    const last = this.reply.lastElementChild;
    const isRunning = this.status === "running";
    const waits = [...this.reply.querySelectorAll(".ask:not(.over)")].length > 0;
    this.typing.hidden = !isRunning || waits || Boolean(last?.classList.contains("streaming"));
  }

  add(element) {
    this.reply.append(element);
    this.move();
  }

  fail(error, retry) {
    if (this.hasError) return;
    this.hasError = true;
    const hint = HINTS[error.code];
    this.add(el(
      "div", { class: "trouble", role: "alert", "data-testid": "trouble" }, icon("warning"),
      el("div", {}, el("p", { text: error.message || "The turn failed." }), hint ? el("p", { class: "small quiet", text: hint }) : null),
      retry && this.prompt ? el("button", { type: "button", class: "button compact", text: "Send again", on: { click: () => retry(this.prompt) } }) : null,
    ));
  }

  end(status) {
    this.show(status, ENDINGS[status] ?? "");
    for (const part of this.element.querySelectorAll(".streaming")) part.classList.remove("streaming");
    for (const part of this.element.querySelectorAll(".tool.running")) part.classList.replace("running", "stopped");
    this.drawFoot();
  }

  /** Write the line under a turn: what it took, as far as it is known. */
  drawFoot(turn) {
    this.turn = turn ?? this.turn;
    const told = this.turn;
    const facts = [];
    if (told?.model) facts.push(told.model);
    if (told?.usage?.model_calls) facts.push(`${count(told.usage.input_tokens)} in`, `${count(told.usage.output_tokens)} out`);
    if (told?.started_at && told?.ended_at) facts.push(seconds(told.ended_at - told.started_at));
    if (this.firstTextMs > 0) facts.push(`first words ${seconds(this.firstTextMs / 1000)}`);
    const text = this.texts.filter(Boolean).join("\n\n");
    this.foot.replaceChildren(
      ...(text ? [copyButton(() => text)] : []),
      ...(facts.length ? [el("span", { class: "facts-line", text: facts.join(" · ") })] : []),
    );
    this.foot.hidden = !this.foot.childNodes.length;
    this.transcript.keepInView();
  }
}

/** A text of the agent's, as it grows. */
class MessageView {
  constructor(turn) {
    this.turn = turn;
    this.text = "";
    this.place = turn.texts.push("") - 1;
    this.element = el("div", { class: "text", "data-testid": "answer" });
    this.isDrawn = true;
  }

  grow(text, isWhole) {
    if (!this.element.isConnected && text) this.turn.add(this.element);
    this.text = isWhole ? text : this.text + text;
    this.element.classList.toggle("streaming", !isWhole);
    this.turn.texts[this.place] = this.text;
    this.turn.move();
    if (isWhole) {
      this.draw();
    } else if (this.isDrawn) {
      this.isDrawn = false;
      // Long texts are drawn less often: each time is the whole text.
      const wait = this.text.length > 20_000 ? 250 : 0;
      setTimeout(() => requestAnimationFrame(() => { if (!this.isDrawn) this.draw(); }), wait);
    }
  }

  draw() {
    this.isDrawn = true;
    this.element.replaceChildren(render(this.text));
    this.turn.transcript.keepInView();
  }
}

/** A tool call: what was asked of the tool, and what it said. */
class ToolView {
  constructor(data) {
    this.name = data.toolName ?? "tool";
    this.output = "";
    const given = data.arguments ?? {};
    const short = given.command ?? given.path ?? given.query ?? given.pattern ?? given.url ?? "";
    this.state = el("span", { class: "tool-state", text: "running" });
    this.result = el("div", { class: "tool-result" });
    this.element = el(
      "details", { class: "tool running", "data-testid": "tool" },
      el("summary", {}, icon("tool"), el("span", { class: "tool-name", text: this.name }),
        el("code", { class: "tool-short", text: String(short) }), this.state),
      codeBlock(JSON.stringify(given, null, 2), "arguments"), this.result,
    );
  }

  say(words) {
    if (this.element.classList.contains("running")) this.state.textContent = words;
  }

  grow(text) {
    this.output = text;
    this.result.replaceChildren(codeBlock(this.output, "output"));
  }

  end(data) {
    const isGood = data.success !== false;
    this.element.classList.remove("running");
    this.element.classList.add(isGood ? "done" : "failed");
    this.state.textContent = isGood ? "done" : "failed";
    const text = data.result?.content ?? data.error?.message ?? data.error ?? "";
    if (text) this.result.replaceChildren(codeBlock(String(text), isGood ? "result" : "error"));
  }
}

/** Who is so near to the end is kept there. */
export const NEAR_END_PX = 90;

export class Transcript {
  /** `host`: api path of the session, `again(prompt)`, `changed()` when running or not changes, `announce(words)`. */
  constructor(root, scroller, host) {
    this.root = root;
    this.scroller = scroller;
    this.host = host;
    this.turns = new Map();
    this.views = [];
    this.messages = new Map();
    this.thoughts = new Map();
    this.tools = new Map();
    this.cards = new Map();
    this.current = null;
    /** The turn of ours that the gateway has begun: in a shared session, it may still wait for somebody else's. */
    this.own = null;
    /** Who sent which message, in a shared session. */
    this.senders = new Map();
    this.known = new Map();
    this.sending = new Set();
    this.isAtEnd = true;
    /** Where we left the scroller. */
    this.top = 0;
    root.replaceChildren();
  }

  get isRunning() {
    return this.views.some((view) => ["running", "queued", "sending"].includes(view.status));
  }

  get isEmpty() {
    return this.views.length === 0;
  }

  // -- what this tab does ---------------------------------------------------------------------------------------------------

  /** Show a prompt before the gateway has it; `sent` resolves with its turn. */
  async send(prompt, sent) {
    const view = this.append(new TurnView(this, prompt));
    view.show("sending", "");
    this.keepInView(true);
    this.host.changed();
    this.sending.add(sent);
    try {
      const turn = await sent;
      this.adopt(view, turn);
    } catch (problem) {
      this.uncover(view);
      view.show("failed", "Not sent");
      view.fail(problem, this.host.again);
    } finally {
      this.sending.delete(sent);
      this.host.changed();
    }
  }

  /** The gateway has named a turn that this tab shows: its events may have come first, and made a view of their own. */
  adopt(view, { turn_id: turnId, status }) {
    const other = this.turns.get(turnId);
    if (other && other !== view) {
      if (!other.hasPrompt) other.ask(view.prompt);
      view.element.remove();
      this.views.splice(this.views.indexOf(view), 1);
      return;
    }
    view.turnId = turnId;
    this.turns.set(turnId, view);
    this.uncover(view);
    // Whether it waits, and for how many, only the stream can tell, which may come after this.
    if (status !== "queued") view.show("running", "");
  }

  /** Show once what this tab sent and the session says now, while the gateway's answer, which names the turn, is on its way. */
  cover(heard) {
    const sent = this.views.find((one) => one !== heard && one.status === "sending" && !one.turnId && one.hasPrompt && one.prompt === heard.prompt);
    sent?.element.remove();
  }

  uncover(view) {
    if (!view.element.isConnected) this.root.append(view.element);
  }

  // -- what the session says ------------------------------------------------------------------------------------------------

  hear(event) {
    if (event.agentId && !event.type.startsWith("tool.")) return;
    HEARD[event.type]?.(this, event.data ?? {}, event);
  }

  append(view) {
    this.views.push(view);
    this.root.append(view.element);
    return view;
  }

  /** Return the view of a turn, made if there is none. */
  turnOf(turnId) {
    let view = this.turns.get(turnId);
    if (!view) {
      // It may be a prompt of this tab's that has no name yet: the gateway's answer settles it (`adopt`).
      view = this.append(new TurnView(this));
      view.turnId = turnId;
      this.turns.set(turnId, view);
    }
    return view;
  }

  /** Return where events without a turn of ours belong. */
  place() {
    if (!this.current) {
      this.current = this.append(new TurnView(this));
      this.current.show("running", "");
    }
    return this.current;
  }

  attribute(view) {
    const sender = this.senders.get(view.messageId);
    if (sender && sender !== this.host.user) view.from(sender);
  }

  open(request) {
    if (this.cards.has(request.request_id)) return;
    const path = `${this.host.path}/requests/${encodeURIComponent(request.request_id)}`;
    const card = new Card(request, (answer) => call("POST", path, answer));
    const view = this.place();
    this.cards.set(request.request_id, card);
    view.add(card.element);
    this.tools.get(request.data?.toolCallId)?.say("waits for you");
    this.keepInView();
    this.host.asked(card);
  }

  /** Take what waits now as the gateway lists it: a request that a broken link took along is not asked any more. */
  settle(requests, before) {
    const open = new Set(requests.map((one) => one.request_id));
    for (const request of requests) this.open(request);
    for (const [id, card] of this.cards) if (card.isOpen && !open.has(id) && before.has(id)) card.close("No longer needed");
    for (const view of this.views) view.move();
  }

  async tell(view) {
    try {
      const turn = this.known.get(view.turnId) ?? await call("GET", `${this.host.path}/turns/${encodeURIComponent(view.turnId)}`);
      if (!view.hasPrompt && turn.prompt) view.ask(turn.prompt);
      if (turn.ended_at) view.drawFoot(turn);
    } catch {
      // The gateway has forgotten it: then its figures are not shown.
    }
  }

  keepInView(isForced = false) {
    if (!isForced && this.hasMovedUp) this.isAtEnd = false;
    if (isForced || this.isAtEnd) {
      this.isAtEnd = true;
      this.scroller.scrollTop = this.scroller.scrollHeight;
      this.top = this.scroller.scrollTop;
    }
  }

  /** Whether the reader moved up since: the event that tells it comes with the next frame, words may come before. */
  get hasMovedUp() {
    return this.scroller.scrollTop < this.top - NEAR_END_PX;
  }
}

const HEARD = {
  "turn.queued"(all, data) {
    const view = all.turnOf(data.turn_id);
    if (view.status !== "sending" && view.status !== "queued") return;
    const ahead = all.views.filter((one) => one !== view && ["running", "queued"].includes(one.status)).length;
    if (ahead) view.show("queued", `Waits for ${ahead === 1 ? "the turn" : `${ahead} turns`} before it`, withdrawButton(all, view));
    if (!view.hasPrompt) Promise.allSettled([...all.sending]).then(() => { if (!view.hasPrompt) all.tell(view); });
    all.host.changed();
  },
  "turn.started"(all, data) {
    all.own = all.turnOf(data.turn_id);
    all.own.show("running", "");
    all.current ??= all.own;
    all.host.changed();
  },
  "turn.ended"(all, data) {
    const view = all.turnOf(data.turn_id);
    if (data.status === "failed") view.fail(data.error ?? {}, all.host.again);
    view.end(data.status);
    all.tell(view);
    if (all.own === view) all.own = null;
    if (all.current === view) all.current = null;
    all.host.changed();
    all.host.ended(view);
  },
  "user.message"(all, data, event) {
    if (data.source && data.source !== "user") return;
    const { own } = all;
    const isOwn = own && !own.wasHeard && (!own.hasPrompt || own.prompt === data.content);
    if (isOwn) {
      all.current = own;
    } else {
      // Another member's, a program's, or from before this gateway started.
      if (all.current && !all.current.turnId) all.current.end("completed");
      all.current = new TurnView(all);
      all.views.push(all.current);
      all.root.insertBefore(all.current.element, own && !own.wasHeard ? own.element : null);
      all.current.show("running", "");
      all.current.messageId = data.messageId;
      if (all.senders.has(data.messageId)) all.attribute(all.current);
    }
    all.current.wasHeard = true;
    all.current.saidAt = Date.parse(event.timestamp);
    all.current.ask(data.content ?? "");
    all.cover(all.current);
    all.keepInView();
    all.host.changed();
  },
  "aerodrome.turn_started"(all, data) {
    all.senders.set(data.messageId, data.sender);
    for (const view of all.views) if (view.messageId === data.messageId && !view.turnId) all.attribute(view);
    all.host.company({ started: data });
  },
  "aerodrome.turn_queued"(all, data) {
    all.host.company({ queued: data });
  },
  "aerodrome.turn_ended"(all, data) {
    all.host.company({ ended: data });
  },
  "aerodrome.presence"(all, data) {
    all.host.company({ here: data.here });
  },
  "session.idle"(all, data) {
    if (all.current && !all.current.turnId) {
      all.current.end(data.aborted ? "aborted" : "completed");
      all.current = all.own;
      all.host.changed();
    }
  },
  "assistant.message_delta"(all, data, event) {
    let message = all.messages.get(data.messageId);
    if (!message) {
      const turn = all.place();
      turn.firstTextMs ??= Date.parse(event.timestamp) - turn.saidAt;
      message = new MessageView(turn);
      all.messages.set(data.messageId, message);
    }
    message.grow(data.deltaContent ?? "", false);
  },
  "assistant.message"(all, data) {
    let message = all.messages.get(data.messageId);
    if (!message) {
      if (!data.content) return;
      message = new MessageView(all.place());
      all.messages.set(data.messageId, message);
    }
    message.grow(data.content ?? "", true);
    all.host.caught();
  },
  "assistant.reasoning_delta"(all, data) {
    thought(all, data).textContent += data.deltaContent ?? "";
  },
  "assistant.reasoning"(all, data) {
    if (data.content) thought(all, data).textContent = data.content;
  },
  "assistant.intent"(all, data) {
    if (all.current) all.current.activity.textContent = data.intent ?? "";
  },
  "session.info"(all, data) {
    if (all.current && data.message) all.current.activity.textContent = data.message;
  },
  "session.warning"(all, data) {
    if (data.message) all.place().add(el("p", { class: "note", text: data.message }));
  },
  "session.error"(all, data) {
    all.place().fail({ message: data.message, code: data.errorType }, all.host.again);
    all.keepInView();
  },
  "session.compaction_start"(all) {
    if (all.current) all.current.activity.textContent = "Summarising the conversation so far";
  },
  "session.compaction_complete"(all) {
    all.place().add(el("p", { class: "note", text: "The conversation so far was summarised to make room." }));
  },
  "tool.execution_start"(all, data) {
    if (QUIET_TOOLS.has(data.toolName)) return;
    const tool = new ToolView(data);
    all.tools.set(data.toolCallId, tool);
    all.place().add(tool.element);
    all.keepInView();
  },
  "tool.execution_partial_result"(all, data) {
    all.tools.get(data.toolCallId)?.grow(data.partialOutput ?? "");
  },
  "tool.execution_complete"(all, data) {
    all.tools.get(data.toolCallId)?.end(data);
    all.current?.move();
  },
  "request.opened"(all, data) {
    all.open(data);
  },
  "request.closed"(all, data) {
    const card = all.cards.get(data.request_id);
    card?.close(card.verdict.textContent || "Answered");
    all.tools.get(card?.request.data?.toolCallId)?.say("running");
    all.current?.move();
    all.host.changed();
  },
  "permission.completed"(all, data) {
    all.cards.get(data.requestId)?.decided(data.result?.kind);
  },
};

function thought(all, data) {
  let text = all.thoughts.get(data.reasoningId);
  if (!text) {
    text = el("div", { class: "thought-text" });
    all.thoughts.set(data.reasoningId, text);
    all.place().add(el("details", { class: "thought" }, el("summary", {}, icon("thought"), el("span", { text: "Reasoning" })), text));
  }
  return text;
}

function withdrawButton(all, view) {
  return el("button", {
    type: "button", class: "ghost", text: "Withdraw",
    on: { click: async () => {
      try {
        await call("DELETE", `${all.host.path}/turns/${encodeURIComponent(view.turnId)}`);
      } catch (problem) {
        if (problem.status !== 409 && problem.status !== 404) all.host.announce(problem.message);
      }
    } },
  });
}
